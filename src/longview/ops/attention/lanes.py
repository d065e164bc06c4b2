"""Memory for elementwise passes whose bits do not depend on where an element lies.

A vectorised function (exp, log) and its scalar form, used for what is left after the last whole vector register,
round differently, so the same number gives different bits at different places of a tensor. Passing over a little
more than the tensor, up to a whole number of registers, leaves no rest (for a pass of one thread).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LANES = 64  # elements; a multiple of what any vectorised loop takes at once


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
            padded = -(-size // LANES) * LANES
            if name not in self._buffers or self._buffers[name].numel() < padded:
                self._buffers[name] = torch.empty(padded, dtype=self._dtype)
                views.clear()
            buffer = self._buffers[name]
            views[shape] = buffer[:size].view(shape), buffer[:padded]
        return views[shape]
