"""Dropout by counter: whether an element is dropped follows from (seed, row, column) alone.

Philox4x32-7 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011; seven rounds are the fewest that
pass BigCrush) with key = seed and counter = (column // 8, row, 0, 0) gives eight numbers of 16 bits, one for each of
eight neighbouring columns: word by word, the low half first. An element is dropped where its number is below
`level(rate)`. Kernels draw the same bits tile by tile, so backward recomputes the mask and never stores it, and tile
sizes don't matter. This file says the same in numpy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVELS = 1 << 16  # 16 bits an element: the rate is rounded to 1/65536
SHARED = 8  # columns that share one counter
ROUNDS = 7

_Words = NDArray[np.uint64]


def draw_seed(device: torch.device | str) -> Tensor:
    """Return a seed (1,) int64 on `device`, from torch's default generator of that device.

    `torch.manual_seed` governs it. On a GPU the host never learns it, so nothing waits, and a captured CUDA graph draws
    a new one at every replay.
    """
    return torch.randint(1 << 62, (1,), device=device)


def level(rate: float) -> int:
    """Return the number, of 65536, of draws that mean "dropped"; 0 for a rate of 0."""
    return min(max(round(rate * LEVELS), 1), LEVELS - 1) if rate else 0


def kept_scale(rate: float) -> float:
    """Return what kept elements are multiplied by."""
    return LEVELS / (LEVELS - level(rate))


def dropout_mask(seed: int, rows: int, width: int, rate: float) -> Tensor:
    """Return (rows, width) float64: 0 where dropped, `kept_scale(rate)` elsewhere."""
    column, row = np.meshgrid(np.arange(-(-width // SHARED)), np.arange(rows))
    words = _philox(seed, column.astype(np.uint64), row.astype(np.uint64))
    halves = np.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], axis=-1)
    drawn = halves.reshape(rows, -1)[:, :width]
    return torch.from_numpy(np.where(drawn < level(rate), 0.0, kept_scale(rate)))


def _philox(seed: int, c0: _Words, c1: _Words) -> tuple[_Words, _Words, _Words, _Words]:
    """Return four words of 32 bits for each counter (c0, c1, 0, 0), held in 64."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    for _ in range(ROUNDS):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = b & low, a & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
