"""Which implementation runs: plain torch, or the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.embedding import reference
from longview.ops.kernels import why_no_triton

Path = Literal["torch", "triton"]
MAX_WIDTH = 1024  # one program holds a row of the table


def path_for(table: Tensor, path: Path | None) -> Path:
    """Return `path`, or where it is None the device's own: the kernels on a GPU that can run them.

    Raises:
        InputError: `triton` where it cannot run, with the reason; an unknown path.
    """
    if path not in (None, "torch", "triton"):
        raise InputError(f"path must be 'torch' or 'triton', got {path!r}")
    if path == "torch" or (path is None and not table.is_cuda):
        return "torch"
    reason = why_not(table)
    if path == "triton" and reason is not None:
        raise InputError(f"path='triton' cannot be used here: {reason}")
    return "torch" if reason else "triton"


def why_not(table: Tensor) -> str | None:
    """Return why the kernels cannot serve `table` (V, D), in a sentence, or None where they can."""
    if table.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels sum in float32, and the table is {str(table.dtype).removeprefix('torch.')}"
    if table.shape[1] > MAX_WIDTH:
        return f"the kernels take rows of up to {MAX_WIDTH} values, and the table has {table.shape[1]}"
    return why_no_triton(table.device)


def sums_of(path: Path) -> Callable[[Tensor, Tensor, torch.dtype, torch.Size], Tensor]:
    """Return the `sum_by_id` of `path`."""
    if path == "torch":
        return reference.sum_by_id
    from longview.ops.embedding import fused

    return fused.sum_by_id
