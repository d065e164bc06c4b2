"""Offsets and lengths that do not fit: nothing is read outside the tensors, wherever the batch is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from longview.ops.attention import MaskSpec
from longview.ops.attention.cached import CachedKeys, CandidateWork, cached_attention
from longview.ops.attention.work import Shape

pytest.importorskip("triton")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU stops in a way of its own")

BAD_OFFSETS = {
    "decrease": [0, 5, 3, 8],
    "overrun": [0, 3, 5, 9],
    "stop early": [0, 3, 5, 7],
    "begin late": [1, 3, 5, 8],
    "begin before 0": [-1, 3, 5, 8],
    "enormous in between": [0, 1 << 40, 5, 8],
}


def numbers(*values: int) -> Tensor:
    return torch.tensor(values)


def shape(offsets: Tensor, context: Tensor | None = None, targets: Tensor | None = None, longest: int = 8) -> Shape:
    return Shape(offsets, context, targets, 8, longest)


class TestFits:
    def test_good_ones(self) -> None:
        good = numbers(0, 3, 3, 8)
        assert shape(good).fits()
        assert shape(good, numbers(1, 0, 2), numbers(2, 0, 3)).fits()
        assert Shape(good, None, None, 8, 0, numbers(0, 3, 3, 4), 4).fits()
        assert Shape(numbers(0), None, None, 0, 0).fits(), "no sequence at all"

    @pytest.mark.parametrize("offsets", BAD_OFFSETS.values(), ids=BAD_OFFSETS)
    def test_bad_offsets(self, offsets: list[int]) -> None:
        assert not shape(torch.tensor(offsets)).fits()

    @pytest.mark.parametrize(
        ("context", "targets"),
        [((-1, 0, 0), None), (None, (0, 0, -1)), ((4, 0, 0), None), (None, (0, 1, 0)), ((2, 0, 0), (2, 0, 0))],
    )
    def test_lengths_that_leave_a_sequence_short(self, context: tuple[int, ...], targets: tuple[int, ...]) -> None:
        given = [None if x is None else torch.tensor(x) for x in (context, targets)]
        assert not shape(numbers(0, 3, 3, 8), *given).fits()

    def test_a_context_longer_than_was_declared(self) -> None:
        assert not shape(numbers(0, 3, 3, 8), numbers(3, 0, 4), longest=3).fits()

    @pytest.mark.parametrize("queries", [(0, 4, 4, 4), (0, 2, 1, 4), (0, 1, 1, 5), (1, 1, 1, 4)])
    def test_queries_that_are_not_the_newest_tokens(self, queries: tuple[int, ...]) -> None:
        assert not Shape(numbers(0, 3, 3, 8), None, None, 8, 0, torch.tensor(queries), 4).fits()


@pytest.mark.parametrize("offsets", BAD_OFFSETS.values(), ids=BAD_OFFSETS)
def test_the_work_of_a_layer_is_refused_before_any_kernel(offsets: list[int]) -> None:
    from longview.ops.attention.triton_attention import LayerAttention

    with pytest.raises(RuntimeError, match="attention: offsets must rise from 0 to 8, the tokens of q"):
        LayerAttention.of(torch.tensor(offsets), 8, MaskSpec.causal(), 1.0, 8.0)


class TestCandidates:
    def attend(self, candidates: list[int], cached: list[int], context: list[int] | None = None) -> Tensor:
        q, keys = torch.ones(4, 1, 16), torch.ones(8, 1, 16)
        cache = CachedKeys(keys, keys, torch.tensor(cached), None if context is None else torch.tensor(context))
        work = CandidateWork(torch.tensor(candidates), 4)
        return cached_attention(q, q, q, work, cache, MaskSpec.causal(), alpha=1.0, scale_length=8.0)

    def test_good_ones_and_a_cache_with_room_left(self) -> None:
        assert torch.isfinite(self.attend([0, 1, 4], [0, 3, 8], [1, 0])).all()
        work, keys = CandidateWork(numbers(0, 4), 4), torch.ones(8, 1, 16)
        work.demand(CachedKeys(keys, keys, numbers(0, 6)))

    @pytest.mark.parametrize("offsets", [[0, 3, 5], [0, 5, 4], [1, 3, 4], [0, 3, 3]])
    def test_bad_offsets_of_candidates(self, offsets: list[int]) -> None:
        with pytest.raises(RuntimeError, match="offsets of candidates must rise from 0 to 4"):
            self.attend(offsets, [0, 3, 8])

    @pytest.mark.parametrize("offsets", [[0, 3, 9], [0, 9, 8], [-1, 3, 8]])
    def test_bad_offsets_of_the_cache(self, offsets: list[int]) -> None:
        with pytest.raises(RuntimeError, match="stay within its 8 tokens"):
            self.attend([0, 1, 4], offsets)

    def test_a_context_longer_than_its_sequence(self) -> None:
        with pytest.raises(RuntimeError, match="its context within its sequences"):
            self.attend([0, 1, 4], [0, 3, 8], [4, 0])


SCRIPT = """
import sys, torch
from longview.ops.attention import MaskSpec, semi_local_attention
torch.set_grad_enabled(False)
offsets, bad = torch.tensor([0, 3, 5, 8]).cuda(), torch.tensor({offsets}).cuda()
q = torch.ones(8, 2, {dim}, device="cuda", dtype=torch.{dtype})

def attend():
    return semi_local_attention(q, q, q, offsets, MaskSpec.ultra_prefix(4, 2), scale_length=8, max_length=8)

attend()
if {captured}:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        attend()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        attend()
    graph.replay()
    torch.cuda.synchronize()
print("good ones pass", flush=True)
offsets.copy_(bad)
graph.replay() if {captured} else attend()
torch.cuda.synchronize()
print("bad ones pass", flush=True)
"""


@GPU
@pytest.mark.parametrize(
    ("captured", "dim", "dtype"),
    [(False, 64, "bfloat16"), (True, 64, "bfloat16"), (False, 64, "float64")],
    ids=["launched", "captured", "dense"],
)
@pytest.mark.parametrize("offsets", [[0, 5, 3, 8], [0, 3, 5, 9]], ids=["decrease", "overrun"])
def test_a_gpu_stops_with_the_words(offsets: list[int], captured: bool, dim: int, dtype: str) -> None:
    """In a process of its own: a device that stopped is lost to its process."""
    script = SCRIPT.format(offsets=offsets, captured=captured, dim=dim, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert "good ones pass" in done.stdout, done.stderr
    assert "bad ones pass" not in done.stdout
    assert done.returncode != 0
    assert "offsets must rise" in done.stderr
    assert "illegal memory access" not in done.stderr
