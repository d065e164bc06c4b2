"""Whether Triton kernels can run on a device, and in which form.

A kernel runs compiled on a GPU, or, with TRITON_INTERPRET=1 set before the first import of triton, slowly and exactly
on the CPU (in float32: the interpreter's bfloat16 is wrong). Kernel modules import triton at the top and are imported
by their dispatcher only once `why_no_triton` returned None.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 products and asynchronous copies
EARLY_CAPABILITY = (9, 0)  # Hopper: a kernel may begin while the one before it ends
_off: list[str] = []  # why `without_kernels` switched them off; backward runs in threads of its own, which must see it


def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def without_kernels(reason: str = "the kernels were switched off") -> Iterator[None]:
    """Let every operation of the process go its plain way in the block: what a benchmark compares the kernels with."""
    _off.append(reason)
    try:
        yield
    finally:
        _off.pop()


def why_no_triton(device: torch.device | str) -> str | None:
    """Return why Triton kernels cannot run on tensors of `device`, in a sentence, or None where they can."""
    if _off:
        return _off[-1]
    return _why_not_on(torch.device(device), interpreted())


@functools.cache
def _why_not_on(device: torch.device, interpreted: bool) -> str | None:
    """Return `why_no_triton` of a device, which is asked before every launch."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted):
        return f"Triton kernels need a CUDA GPU, and the tensors are on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; a CUDA build of torch brings it (pip install triton)"
    if device.type == "cuda":
        capability = capability_of(device)
        if capability < LEAST_CAPABILITY:
            return f"this GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 (Ampere)"
    return None


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU; of `cuda` without a number the current one's at the first call."""
    return torch.cuda.get_device_capability(device)


def begins_early(device: torch.device) -> bool:
    """Return whether a kernel on `device` may begin while the one before it ends, and wait for it itself."""
    return device.type == "cuda" and capability_of(device) >= EARLY_CAPABILITY


def on_device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """Return the context in which kernels on `x` are launched: its GPU, which need not be the current one."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def padded_dim(dim: int) -> int:
    """Return the power of two, 16 at least, that a kernel rounds a head dimension up to."""
    return max(16, 1 << (dim - 1).bit_length())
