"""Inputs of the benchmark of memory losses: a batch of unit vectors and a memory of them, with classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CLASSES = 5.26  # images of a class in the training half of Stanford Online Products


class Setting(NamedTuple):
    """A batch against a memory of `rows`, stored in `dtype`; on a GPU a turn is `calls` timed calls."""

    batch: int
    rows: int
    width: int
    dtype: str
    calls: int = 1


class Problem(NamedTuple):
    """Inputs of one setting."""

    embeddings: Tensor
    labels: Tensor
    reference: Tensor
    reference_labels: Tensor
    affine: tuple[Tensor, Tensor]


def problem_of(setting: Setting, device: torch.device) -> Problem:
    """Return unit vectors with labels, the memory in its dtype, and a map that moves it a little."""
    source = torch.Generator(device).manual_seed(setting.batch + setting.rows)

    def vectors(n: int) -> Tensor:
        return functional.normalize(torch.randn(n, setting.width, device=device, generator=source), dim=1)

    classes = max(2, round(setting.rows / CLASSES))
    wanted = -(-setting.batch // 4)
    present = torch.randperm(max(classes, wanted), device=device, generator=source)[:wanted]
    dtype: torch.dtype = getattr(torch, setting.dtype)
    return Problem(
        vectors(setting.batch),
        present.repeat_interleave(4)[: setting.batch],
        vectors(setting.rows).to(dtype),
        torch.randint(classes, (setting.rows,), device=device, generator=source),
        (
            1 + 0.1 * torch.randn(setting.width, device=device, generator=source),
            0.01 * torch.randn(setting.width, device=device, generator=source),
        ),
    )
