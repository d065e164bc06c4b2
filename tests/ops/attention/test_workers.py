"""Sharing pieces among threads: all are done once, errors arrive, torch is left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from longview.ops.attention.lanes import LANES, Scratch
from longview.ops.attention.workers import share


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("worthwhile", [True, False])
def test_every_piece_runs_once_without_threads_of_its_own(worthwhile: bool) -> None:
    done: list[tuple[int, int]] = []
    pieces = [lambda _, n=n: done.append((n, torch.get_num_threads())) for n in range(50)]
    share(pieces, torch.float32, worthwhile=worthwhile)  # type: ignore[arg-type]
    assert sorted(done) == [(n, 1) for n in range(50)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_several_threads_work_at_a_time() -> None:
    together = threading.Barrier(3, timeout=20)  # broken, and so an error, unless three pieces meet
    met: list[int] = []
    share([lambda _: met.append(together.wait())] * 3, torch.float32, worthwhile=True)
    assert sorted(met) == [0, 1, 2]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("worthwhile", [True, False])
def test_an_error_of_a_piece_is_raised(worthwhile: bool) -> None:
    def fail(_: Scratch) -> None:
        raise ValueError("a piece failed")

    with pytest.raises(ValueError, match="a piece failed"):
        share([fail] * 4, torch.float32, worthwhile=worthwhile)
    assert torch.get_num_threads() == 3


def test_scratch_is_the_same_memory_again_and_grows() -> None:
    scratch = Scratch(torch.float64)
    small, flat = scratch.take("a", (3, 5))
    assert small.shape == (3, 5)
    assert flat.numel() == LANES
    assert scratch.take("a", (3, 5))[0].data_ptr() == small.data_ptr()
    assert scratch.take("b", (3, 5))[0].data_ptr() != small.data_ptr()
    assert scratch.take("a", (30, 50))[1].numel() == -(-1500 // LANES) * LANES
    assert scratch.take("a", (3, 5))[0].dtype == torch.float64
