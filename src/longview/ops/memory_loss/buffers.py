"""Memory that every tile of a loss uses again: fresh pages cost a CPU more than a pass over them."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

KEPT = threading.local()  # what a loss on the CPU leaves to the next one of its thread: up to a tile each


class Buffers:
    """Named matrices on one device; those on the CPU are left to the next loss of the same thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held: dict[str, Tensor] = {}

    def matrix(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of this shape, which holds anything; the next of this name and dtype takes it again."""
        held: dict[str, Tensor] = vars(KEPT) if self.device.type == "cpu" else self.held
        key, size = f"{name} {dtype}", math.prod(shape)
        found = held.get(key)
        if found is None or found.numel() < size:
            found = held[key] = torch.empty(size, dtype=dtype, device=self.device)
        return found[:size].view(shape)


def forget_buffers() -> None:
    """Free what losses on the CPU have left to the next one of this thread."""
    vars(KEPT).clear()
