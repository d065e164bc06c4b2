"""The CPU path against the reference, and the properties every backend must have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longview.ops.attention import MaskSpec, RelativeBias, semi_local_attention, workers
from longview.ops.attention.packing import BUCKET
from longview.ops.attention.tiles import LONG, ROWS, visited
from tests.ops.attention.conftest import MASKS
from tests.ops.attention.helpers import Case, case, relative_errors

EDGES = [0, 1, BUCKET - 1, BUCKET, BUCKET + 1, ROWS - 1, ROWS, ROWS + 1, LONG, LONG + 1]
NAMED = {
    "causal": MaskSpec.causal(),
    "window": MaskSpec(local_window=40),
    "ultra": MaskSpec.ultra(40, 20),
    "ultra_prefix": MaskSpec.ultra_prefix(40, 20),
    "meta": MaskSpec.meta(40, 0),
    "meta recent": MaskSpec.meta(40, 20),
    "torcheasyrec": MaskSpec.torcheasyrec(40, 20),
    "semi-local targets": MaskSpec(local_window=40, global_size=20, target_scope="semi_local", target_group=3),
}
WITH_CONTEXT = [(2, n, 3) for n in (0, 1, ROWS, 130)] + [(0, 5, 0), (3, 0, 0), (0, 0, 4), (1, 70, 65)]

lengths = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 45), st.integers(0, 9)), max_size=5)


class TestAgainstTheReference:
    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize("backend", ["cpu", "dense"])
    def test_named_masks_with_context_and_targets(self, name: str, backend: str) -> None:
        batch = case(WITH_CONTEXT)
        expected = batch.to(torch.float64).run(NAMED[name], "reference")
        assert max(relative_errors(batch.run(NAMED[name], backend), expected)) < 1e-5

    @pytest.mark.parametrize("name", ["causal", "ultra", "ultra_prefix"])
    def test_lengths_around_the_edges_of_blocks(self, name: str) -> None:
        batch = case(EDGES, heads=1, d_qk=5, d_v=3)
        expected = batch.to(torch.float64).run(NAMED[name], "reference")
        assert max(relative_errors(batch.run(NAMED[name], "cpu"), expected)) < 1e-5

    @pytest.mark.usefixtures("small_tiles")
    @given(MASKS, lengths, st.integers(1, 3), st.booleans())
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_mask_any_lengths_any_bias_in_float64(
        self, mask: MaskSpec, lengths: list[tuple[int, int, int]], heads: int, bias: bool
    ) -> None:
        batch = case(lengths, heads, d_qk=3, d_v=2, bias=bias, dtype=torch.float64)
        assert max(relative_errors(batch.run(mask, "cpu"), batch.run(mask, "reference"))) < 1e-12

    @pytest.mark.parametrize("backend", ["cpu", "dense"])
    def test_bias_by_position_and_time(self, backend: str) -> None:
        batch = case([0, 1, 40, 70, 130], bias=True)
        expected = batch.to(torch.float64).run(MaskSpec.ultra_prefix(40, 20), "reference")
        assert max(relative_errors(batch.run(MaskSpec.ultra_prefix(40, 20), backend), expected)) < 1e-5

    def test_bfloat16_is_computed_in_float32(self) -> None:
        batch = case([5, 100, 600]).to(torch.bfloat16)
        found = batch.run(MaskSpec.ultra_prefix(40, 20), "cpu")
        expected = batch.to(torch.float64).run(MaskSpec.ultra_prefix(40, 20), "reference")
        assert all(x.dtype == torch.bfloat16 for x in found)
        assert max(relative_errors(found, expected)) < 8e-3

    def test_autocast_changes_nothing(self) -> None:
        batch = case([5, 100])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = batch.run(MaskSpec.causal(), "cpu")
        assert all(map(torch.equal, inside, batch.run(MaskSpec.causal(), "cpu")))

    def test_slices_of_one_projection_need_no_copy_to_be_right(self) -> None:
        batch = case([3, 50, 0, 600])
        joined = torch.cat([x.flatten(1) for x in (batch.q, batch.v, batch.k)], dim=1)
        q, v, k = (x.view(batch.q.shape) for x in joined.split(16, dim=1))
        assert not q.is_contiguous()
        out = semi_local_attention(q, k, v, batch.offsets, MaskSpec.causal(), alpha=0.7, scale_length=5)
        assert torch.equal(out, batch.run(MaskSpec.causal())[0])

    @pytest.mark.usefixtures("small_tiles")
    @pytest.mark.parametrize("name", ["ultra", "ultra_prefix", "meta recent"])
    def test_gradcheck(self, name: str) -> None:
        mask = MaskSpec(**{**_fields(NAMED[name]), "local_window": 3, "global_size": 2})
        batch = case([(1, 6, 2), (0, 0, 0), (0, 9, 0)], 1, d_qk=2, d_v=1, bias=True, dtype=torch.float64)
        context, targets = torch.tensor([1, 0, 0]), torch.tensor([2, 0, 0])

        def attention(q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor) -> Tensor:
            bias = RelativeBias(position, time, batch.timestamps)
            sizes = {"context_lengths": context, "target_lengths": targets}
            return semi_local_attention(q, k, v, batch.offsets, mask, alpha=0.5, scale_length=2, bias=bias, **sizes)

        inputs = [x.requires_grad_() for x in (batch.q, batch.k, batch.v, batch.position, batch.time) if x is not None]
        assert torch.autograd.gradcheck(attention, inputs)


class TestProperties:
    @pytest.mark.parametrize("name", ["window", "ultra", "ultra_prefix"])
    def test_a_masked_key_changes_no_bit(self, name: str) -> None:
        batch, key = case([150]), 45
        before = batch.run(NAMED[name])[0]
        batch.k[key], batch.v[key] = 1e3, -1e3
        after = batch.run(NAMED[name])[0]
        blind = ~NAMED[name].dense(0, 150, 0)[:, key]
        assert blind.sum() > 60
        assert torch.equal(before[blind], after[blind])
        assert not torch.equal(before[key], after[key])

    @pytest.mark.parametrize("lengths", [[40, 50, 45], [600, 520, 700], [33, 600, 0, 64]])
    def test_nan_in_a_neighbour_never_leaks(self, lengths: list[int]) -> None:
        clean, dirty = case(lengths, bias=True), case(lengths, bias=True)
        neighbour = dirty.rows(1)
        for x in (dirty.q, dirty.k, dirty.v, dirty.d_out):
            x[neighbour] = math.nan
        for a, b in zip(clean.run(NAMED["ultra_prefix"])[:4], dirty.run(NAMED["ultra_prefix"])[:4], strict=True):
            others = torch.ones(len(a), dtype=torch.bool)
            others[neighbour] = False
            assert torch.equal(a[others], b[others])
            assert b[neighbour].isnan().any()

    @pytest.mark.parametrize("name", ["causal", "ultra", "ultra_prefix"])
    @pytest.mark.parametrize(("heads", "bias"), [(1, False), (2, True), (3, False)])
    def test_the_same_bits_alone_or_in_company(self, name: str, heads: int, bias: bool) -> None:
        batch = case([0, 1, 33, 64, 70, 70, 134, 135, 200, 513, 600], heads, d_qk=16, d_v=20, bias=bias)
        together = batch.run(NAMED[name])[:4]
        for number in range(len(batch.lengths)):
            alone = batch.alone(number).run(NAMED[name])[:4]
            assert all(torch.equal(a[batch.rows(number)], b) for a, b in zip(together, alone, strict=True)), number

    def test_the_order_of_sequences_changes_no_bit(self) -> None:
        batch = case([7, 90, 600, 33])
        whole = [batch.run(NAMED["ultra_prefix"])[0][batch.rows(i)] for i in range(4)]
        shuffled = [2, 0, 3, 1]
        parts = [batch.alone(i) for i in shuffled]
        other = Case(
            [batch.lengths[i] for i in shuffled],
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("q", "k", "v", "d_out")),
        )
        out = other.run(NAMED["ultra_prefix"])[0]
        assert all(torch.equal(out[other.rows(at)], whole[i]) for at, i in enumerate(shuffled))

    def test_ten_runs_give_the_same_bits(self) -> None:
        batch = case([33, 200, 600, 64], bias=True)
        first = batch.run(NAMED["ultra_prefix"])
        for _ in range(9):
            assert all(map(torch.equal, first, batch.run(NAMED["ultra_prefix"])))

    def test_a_window_as_long_as_the_history_is_causal(self) -> None:
        batch = case([40, 200])
        found = batch.run(MaskSpec(local_window=200, global_size=7))
        assert max(relative_errors(found, batch.run(MaskSpec.causal()))) < 1e-6

    def test_parts_of_a_mask_add_up(self) -> None:
        """SiLU attention has no normaliser: window + prefix = their union, where the two do not overlap."""
        batch = case([300])
        union, prefix = MaskSpec(local_window=50, global_size=20), MaskSpec(local_window=1, global_size=20)
        window, self_alone = MaskSpec(local_window=50), MaskSpec(local_window=1)
        beyond = slice(20 + 50, None)  # rows whose window does not reach the prefix
        left = batch.run(union)[0] + batch.run(self_alone)[0]
        right = batch.run(window)[0] + batch.run(prefix)[0]
        assert max(relative_errors([left[beyond]], [right[beyond]])) < 1e-6

    @pytest.mark.parametrize("name", ["causal", "window", "ultra_prefix"])
    def test_appending_events_keeps_earlier_rows(self, name: str) -> None:
        batch = case([180])
        before = Case([(0, 120, 0)], *(x[:120] for x in (batch.q, batch.k, batch.v, batch.d_out)))
        assert max(relative_errors([batch.run(NAMED[name])[0][:120]], [before.run(NAMED[name])[0]])) < 1e-6

    def test_the_same_bits_on_one_thread_or_several(self) -> None:
        batch, threads = case([600, 40, 130, 700, 90, 200] * 3, bias=True), torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = batch.run(NAMED["ultra_prefix"])
            torch.set_num_threads(3)
            several = batch.run(NAMED["ultra_prefix"])
            assert torch.get_num_threads() == 3, "the setting outlives the pass"
        finally:
            torch.set_num_threads(threads)
        assert all(map(torch.equal, one, several))

    def test_works_in_inference_mode(self) -> None:
        batch = case([600, 700, 130])
        with torch.inference_mode():
            out = semi_local_attention(
                batch.q + 0, batch.k, batch.v, batch.offsets, NAMED["ultra_prefix"], alpha=0.7, scale_length=5.0
            )
        assert torch.equal(out, batch.run(NAMED["ultra_prefix"])[0])

    def test_an_empty_batch_and_empty_sequences(self) -> None:
        assert case([]).run(MaskSpec.causal())[0].shape == (0, 2, 8)
        assert case([0, 0]).run(MaskSpec.causal(), "cpu")[1].shape == (0, 2, 8)


class Counter(TorchDispatchMode):
    """Counts the multiply-adds of every matrix product, and the elements of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm_"):
            a, b = args[-2:]
            self.products += a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
        assert name not in ("mm", "addmm", "matmul"), "a product this test does not count"
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A dispatch mode sees the operations of its own thread only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
class TestCost:
    HEADS, DIM = 2, 16

    def count(self, mask: MaskSpec, length: int) -> tuple[Counter, Counter]:
        batch = case([length], self.HEADS, self.DIM, self.DIM)
        q, k, v = (x.requires_grad_() for x in (batch.q, batch.k, batch.v))
        with Counter() as forward:
            out = semi_local_attention(q, k, v, batch.offsets, mask, scale_length=1.0)
        with Counter() as backward:
            out.backward(batch.d_out)
        return forward, backward

    @pytest.mark.parametrize("mask", [MaskSpec.ultra_prefix(256, 128), MaskSpec.ultra(256, 128), MaskSpec.causal()])
    def test_two_products_forward_and_five_backward_over_the_visited_tiles(self, mask: MaskSpec) -> None:
        forward, backward = self.count(mask, 2048)
        product = visited(mask, 0, 2048, 0) * self.HEADS * self.DIM
        assert forward.products == 2 * product
        assert backward.products == 5 * product

    def test_memory_is_linear_in_length(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The largest tensor is a gradient of an input: scores never exist beyond a tile."""
        monkeypatch.setattr(workers, "_own", workers._Own())  # not what earlier tests left in this thread
        for length in (4096, 8192):
            for counter in self.count(MaskSpec.ultra_prefix(256, 128), length):
                assert counter.largest <= (length * self.HEADS + 1) * self.DIM


def _fields(mask: MaskSpec) -> dict[str, Any]:
    return {name: getattr(mask, name) for name in MaskSpec.__dataclass_fields__}
