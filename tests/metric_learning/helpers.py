"""Streams of embeddings whose encoder moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.metric_learning import EmbeddingMemory, MemoryConfig

WIDTH = 6


def drifting(
    steps: int, batch: int = 8, *, classes: int = 4, speed: float = 0.05, stretch: float = 0.025, seed: int = 0
) -> list[Any]:
    """Return (embeddings (b, 6) float64, labels, sample ids) of each step; the population's moments move."""
    source = torch.Generator().manual_seed(seed)
    centres = torch.randn(50, WIDTH, generator=source, dtype=torch.float64)
    mean, log_std = torch.zeros(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, dtype=torch.float64)
    stream = []
    for step in range(steps):
        mean = mean + speed * torch.randn(WIDTH, generator=source, dtype=torch.float64)
        log_std = log_std + stretch * torch.randn(WIDTH, generator=source, dtype=torch.float64)
        labels = torch.randperm(50, generator=source)[:classes].repeat_interleave(batch // classes)
        noise = torch.randn(batch, WIDTH, generator=source, dtype=torch.float64)
        embeddings = (centres[labels] + 0.5 * noise) * log_std.exp() + mean
        stream.append((embeddings, labels, step * batch + torch.arange(batch)))
    return stream


def memory(drift: dict[str, Any] | None = None, **settings: Any) -> EmbeddingMemory:
    """Return a float64 memory of 40 rows of width 6."""
    wanted = {"capacity": 40, "width": WIDTH, "storage": "float64", "moments": "float64", "renormalise": False}
    return MemoryConfig.model_validate({**wanted, "drift": drift or {"kind": "none"}, **settings}).build()


def states(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of every buffer."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
