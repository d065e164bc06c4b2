"""Made-up rows."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(rows: int, width: int, seed: int = 0) -> Tensor:
    """Rows whose sizes differ by many orders of magnitude."""
    return normal(rows, width, seed=seed) * torch.exp(3 * normal(rows, 1, seed=seed + 1))
