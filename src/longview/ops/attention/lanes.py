"""Elementwise passes whose bits do not depend on where an element lies.

A vectorised function (exp, log) and its scalar form, used for what is left after the last whole vector register,
round differently. Each thread of a pass has such a rest, so the same number gives different bits at different
places of a tensor. Passing over a little more than the tensor, to a whole number of registers per thread, leaves
no rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 64  # elements; a multiple of what any vectorised loop takes at once
GRAIN = 32768  # elements below which torch does not share a pass among threads


def whole_lanes(count: int) -> int:
    """Return the least length of at least `count` that leaves no thread a rest."""
    threads, before = 1, 0
    while threads != before:
        before = threads
        unit = LANES * threads
        padded = -(-count // unit) * unit
        threads = min(torch.get_num_threads(), max(-(-padded // GRAIN), threads))
    return padded


def lanes(x: Tensor) -> Tensor:
    """Return `x`, at the beginning of a buffer from `lane_buffer`, as a flat tensor of whole lanes."""
    return x.as_strided((whole_lanes(x.numel()),), (1,))


def lane_buffer(count: int, dtype: torch.dtype) -> Tensor:
    """Return zeros with room for whole lanes of `count` elements or fewer."""
    return torch.zeros(whole_lanes(count) + LANES * torch.get_num_threads(), dtype=dtype)
