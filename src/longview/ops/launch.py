# mypy: disable-error-code="no-untyped-call"
"""Launching a kernel again without looking at every argument again.

Triton looks at the type and alignment of each argument on every call, to find the kernel it compiled for them. Here a
few microseconds of work follow each launch, and that search costs more. So the caller names what a compiled kernel
depends on, and the kernel is found by that name. Nor are pointers looked at again, whether they are the device's: the
first launch did. Many small buffers are places in one, because an allocation and a view cost as much as a launch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

ALIGNED = 16  # bytes: wide loads begin at a multiple
TENSORS = frozenset((Tensor, Parameter))  # a set of types is asked faster than isinstance

_compiled: dict[Hashable, Any] = {}


def alignment(tensor: Tensor) -> bool:
    """Return whether a tensor begins where wide loads can, which kernels are compiled for."""
    return tensor.data_ptr() % ALIGNED == 0


class Place(NamedTuple):
    """A flat buffer within a larger one: `size` values of `dtype` that begin at byte `first` of `whole`."""

    pointer: int
    whole: Tensor
    dtype: torch.dtype
    first: int
    size: int

    def tensor(self) -> Tensor:
        """Return it as a tensor, (size,)."""
        return self.whole[self.first : self.first + self.size * self.dtype.itemsize].view(self.dtype)


def places(device: torch.device, wanted: Sequence[tuple[torch.dtype, int]]) -> list[Place]:
    """Return buffers of these dtypes and numbers of values, of one allocation, each fit for wide loads."""
    ends = [0]
    for dtype, size in wanted:
        ends.append(ends[-1] + -(-size * dtype.itemsize // ALIGNED) * ALIGNED)
    whole = torch.empty(ends[-1], dtype=torch.uint8, device=device)
    base = whole.data_ptr()
    return [
        Place(base + first, whole, dtype, first, size) for first, (dtype, size) in zip(ends[:-1], wanted, strict=True)
    ]


def launch(
    kernel: Any, grid: tuple[int, int], name: Hashable, args: tuple[Any, ...], constants: dict[str, Any], **options: int
) -> None:
    """Launch `kernel` with `args` and after them its constexpr `constants`, in the order of its parameters.

    Args:
        kernel: a jitted function whose constexpr parameters come last.
        grid: programs.
        name: what else the compiled kernel depends on: dtypes and alignments of `args`.
        args: tensors and places, the first of them on the device of the launch or else `name` says which, and numbers;
            integers below 2^31 whose parameters are not specialised. All are on that device: only the first launch of
            a kernel looks.
        constants: the constexpr parameters.
        options: of the compiler.
    """
    first = args[0]
    device = (first.whole if type(first) is Place else first).get_device()
    key = (kernel.fn, device, name, *constants.values(), *options.values())
    compiled = _compiled.get(key)
    if compiled is None:
        tensors = [arg.tensor() if type(arg) is Place else arg for arg in args]
        # The interpreter returns nothing, and is asked again each time.
        _compiled[key] = kernel[grid](*tensors, **constants, **options)
        return
    plain = [
        arg.pointer if (kind := type(arg)) is Place else arg.data_ptr() if kind in TENSORS else arg for arg in args
    ]
    compiled[(*grid, 1)](*plain, *constants.values())
