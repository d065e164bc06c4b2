"""Bags of ids, end to end: what a table refuses, and their sums in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longview.errors import InputError

IDS = (torch.int64, torch.int32)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODES = ("sum", "mean")


def check_kinds(ids: Tensor, dtype: torch.dtype) -> None:
    """Refuse ids that are no integers and results that are no floating numbers of 16 or 32 bits."""
    if ids.dtype not in IDS:
        raise InputError(f"quantised table: ids are {ids.dtype}; expected int64 or int32")
    if dtype not in DTYPES:
        raise InputError(f"quantised table: dtype is {dtype}; expected float32, bfloat16 or float16")


def check_bags(ids: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> None:
    """Refuse what has no meaning whatever the values are."""
    if mode not in MODES:
        raise InputError(f"quantised table: mode is {mode!r}; expected sum or mean")
    if ids.dim() != 1:
        raise InputError(f"quantised table: ids of bags have shape {tuple(ids.shape)}; expected them end to end, (n,)")
    if offsets.dtype not in IDS or offsets.dim() != 1 or not len(offsets):
        raise InputError(
            f"quantised table: offsets are {offsets.dtype} of shape {tuple(offsets.shape)}; expected int64 or int32 of "
            "shape (bags + 1,)"
        )
    for name, other in (("offsets", offsets), ("weights", weights)):
        if other is not None and other.device != ids.device:
            raise InputError(f"quantised table: {name} are on {other.device} and ids on {ids.device}; move either")
    if weights is None:
        return
    if mode == "mean":
        raise InputError("quantised table: weights go with mode sum, not mean; divide them by the size of their bag")
    if weights.shape != ids.shape or not weights.is_floating_point():
        raise InputError(
            f"quantised table: weights are {weights.dtype} of shape {tuple(weights.shape)}; expected a floating one "
            f"for each of {len(ids)} ids"
        )


def check_offsets(offsets: Tensor, n: int) -> None:
    """Refuse offsets that do not go from 0 up to `n`; waits for the device."""
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != n:
        raise InputError(f"quantised table: offsets go from {first} to {last}; expected from 0 to the {n} ids")
    down = (offsets.diff() < 0).nonzero()
    if len(down):
        bag = int(down[0, 0])
        raise InputError(
            f"quantised table: bag {bag} ends at {int(offsets[bag + 1])}, before it begins, at {int(offsets[bag])}"
        )


def summed(
    rows_at: Callable[[Tensor], Tensor],
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    *,
    mean: bool,
    width: int,
    block: int,
) -> Tensor:
    """Return the sums or means (bags, width) float32 of the rows that `rows_at` gives, `block` of them at a time."""
    sizes = offsets.diff()
    bag = torch.repeat_interleave(torch.arange(len(sizes), device=ids.device), sizes)
    found = torch.zeros(len(sizes), width, device=ids.device)
    for begin in range(0, len(ids), block):
        rows = rows_at(ids[begin : begin + block])
        if weights is not None:
            rows = rows * weights.detach()[begin : begin + block, None].float()
        found.index_add_(0, bag[begin : begin + block], rows)
    return found / sizes.clamp(min=1)[:, None] if mean else found
