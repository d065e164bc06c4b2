"""Elementwise passes whose bits do not depend on where an element lies.

A vectorised function (exp, log) and its scalar form, used for what is left after the last whole vector register,
round differently. Each thread of a pass has such a rest, so the same number gives different bits at different
places of a tensor. Passing over a little more than the tensor, to a whole number of registers per thread, leaves
no rest.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

LANES = 64  # elements; a multiple of what any vectorised loop takes at once
GRAIN = 32768  # elements below which torch does not share a pass among threads


def whole_lanes(count: int) -> int:
    """Return the least length of at least `count` that leaves no thread a rest."""
    return _whole_lanes(count, torch.get_num_threads())


@lru_cache(maxsize=4096)
def _whole_lanes(count: int, most_threads: int) -> int:
    threads, before = 1, 0
    while threads != before:
        before = threads
        padded = -(-count // (LANES * threads)) * LANES * threads
        threads = min(most_threads, max(-(-padded // GRAIN), threads))
    return padded


class Scratch:
    """Buffers that are taken again and again, so that no tile waits for fresh memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, dict[tuple[int, ...], tuple[Tensor, Tensor]]] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return uninitialised memory twice: as a tensor of `shape`, and flat in whole lanes for elementwise passes.

        It is the caller's until the next `take` of the same name.
        """
        views = self._views.setdefault(name, {})
        if shape not in views:
            size = math.prod(shape)
            padded = whole_lanes(size)
            if name not in self._buffers or self._buffers[name].numel() < padded:
                self._buffers[name] = torch.empty(padded, dtype=self._dtype)
                views.clear()
            buffer = self._buffers[name]
            views[shape] = buffer[:size].view(shape), buffer[:padded]
        return views[shape]
