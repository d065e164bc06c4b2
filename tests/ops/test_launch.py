"""Recipes place their buffers apart and aligned, and launch their steps in order on the tensors they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longview.ops.kernels import why_no_triton
from longview.ops.launch import ALIGNED, firsts_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REASON = why_no_triton(DEVICE)
runs_kernels = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_buffers_follow_each_other_and_begin_where_wide_loads_can() -> None:
    sizes = {"a": (torch.int32, 1), "none": (torch.float32, 0), "b": (torch.bfloat16, 9), "c": (torch.int64, 2)}
    firsts = firsts_of(sizes)
    assert firsts == {"a": 0, "none": ALIGNED, "b": ALIGNED, "c": 3 * ALIGNED, "": 4 * ALIGNED}


def recipe(n: int) -> Any:
    """Return a recipe that adds 1 to `x` in a buffer, and doubles that into `y`."""
    from longview.ops.launch import Recipe, Step
    from tests.ops.launched import add, double

    first = Step(add, (-(-n // 16), 1), ("x", "more"), (n, 1.0), {"BLOCK": 16})
    last = Step(double, (-(-n // 16), 1), ("more", "y"), (n,), {"BLOCK": 16}, num_warps=1)
    return Recipe(("x", "y"), {"spare": (torch.int32, 3), "more": (torch.float32, n)}, [first, last])


class Compiled:
    """What Triton returns for a kernel that it compiled, of a release whose launcher nobody knows."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.run = SimpleNamespace(global_scratch_size=1, profile_scratch_size=0)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, stream: self.calls.append((grid, *args, stream))


class Kernel:
    """A kernel that notes how often it is compiled, and what it is launched with afterwards."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.fn = object()

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(*args: Any, **constants: Any) -> Compiled:
            self.compiled.append(args)
            return Compiled(self.calls)

        return launch


@runs_kernels
def test_recipes_share_what_is_compiled_and_give_pointers_as_numbers() -> None:
    from longview.ops.launch import Recipe, Step

    kernel, x, halves = Kernel(), torch.zeros(8), torch.zeros(8, dtype=torch.bfloat16)
    made = [
        Recipe(("x",), {"more": (torch.float32, n)}, [Step(kernel, (n, 1), ("more", "x"), (n,), {"B": 4}, num_warps=1)])
        for n in (3, 9)
    ]
    rooms = [one.room(x.device) for one in made]
    made[0].run(rooms[0], (x,))
    assert [arg.dtype for arg in kernel.compiled[0][:2]] == [torch.float32, torch.float32]
    made[0].run(rooms[0], (x,))
    made[1].run(rooms[1], (x,))
    made[1].run(rooms[1], (x,))
    assert len(kernel.compiled) == 1
    first, *others = kernel.calls
    assert first == ((3, 1, 1), rooms[0].data_ptr(), x.data_ptr(), 3, 4, 0)
    assert others == [((9, 1, 1), rooms[1].data_ptr(), x.data_ptr(), 9, 4, 0)] * 2
    made[1].run(rooms[1], (x[1:],))  # another alignment is another kernel
    other = Recipe(
        ("x",), {"more": (torch.float32, 3)}, [Step(kernel, (3, 1), ("more", "x"), (3,), {"B": 4}, num_warps=1)]
    )
    other.run(rooms[0], (halves,))  # so is another dtype
    assert len(kernel.compiled) == 3


@runs_kernels
class TestRecipe:
    @pytest.mark.parametrize("n", [1, 33])
    def test_steps_run_in_order_again_and_again(self, n: int) -> None:
        made = recipe(n)
        for seed in range(3):
            x = torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
            y = torch.empty(n, device=DEVICE)
            room = made.room(x.device)
            made.run(room, (x, y), slice(None, 1))
            assert torch.equal(made.buffer(room, "more"), x + 1)
            made.run(room, (x, y), slice(1, None))
            assert torch.equal(y, (x + 1) * 2)

    def test_tensors_may_begin_anywhere(self) -> None:
        made = recipe(20)
        whole = torch.randn(64, device=DEVICE)
        for first in (0, 1, 2, 4, 1):
            x, y = whole[first : first + 20], torch.empty(20, device=DEVICE)
            made.run(made.room(x.device), (x, y))
            assert torch.equal(y, (x + 1) * 2)

    @pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
    def test_a_profiler_is_told_of_every_launch(self) -> None:
        import triton

        made, told = recipe(20), []
        x, y = torch.randn(20, device=DEVICE), torch.empty(20, device=DEVICE)
        room = made.room(x.device)
        made.run(room, (x, y))
        hook = triton.knobs.runtime.launch_enter_hook
        hook.add(listener := lambda metadata: told.append(metadata.get()["name"]))
        try:
            made.run(room, (x, y))
        finally:
            hook.remove(listener)
        made.run(room, (x, y))
        assert told == ["add", "double"]
