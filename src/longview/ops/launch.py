# mypy: disable-error-code="no-untyped-call"
"""Launching a kernel again without looking at every argument again.

Triton looks at the type and alignment of each argument on every call, to find the kernel it compiled for them. Here a
few microseconds of work follow each launch, and that search costs more. So the caller names what a compiled kernel
depends on, and the kernel is found by that name.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

_compiled: dict[Hashable, Any] = {}


def alignment(tensor: Tensor) -> bool:
    """Return whether a tensor begins where wide loads can, which kernels are compiled for."""
    return tensor.data_ptr() % 16 == 0


def launch(
    kernel: Any, grid: tuple[int, int], name: Hashable, args: tuple[Any, ...], constants: dict[str, Any], **options: int
) -> None:
    """Launch `kernel` with `args` and after them its constexpr `constants`, in the order of its parameters.

    Args:
        kernel: a jitted function whose constexpr parameters come last.
        grid: programs.
        name: what else the compiled kernel depends on: dtypes and alignments of `args`.
        args: tensors, the first of them on the device of the launch or else `name` says which, and numbers; integers
            below 2^31 whose parameters are not specialised.
        constants: the constexpr parameters.
        options: of the compiler.
    """
    key = (kernel.fn, args[0].get_device(), name, *constants.values(), *options.values())
    compiled = _compiled.get(key)
    if compiled is None:
        # The interpreter returns nothing, and is asked again each time.
        _compiled[key] = kernel[grid](*args, **constants, **options)
        return
    compiled[(*grid, 1)](*args, *constants.values())
