"""Problems, views and losses that the tests of the memory losses share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from longview.ops.memory_loss import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
    memory_loss,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSSES: dict[str, PairLoss] = {
    "contrastive": ContrastiveLoss(positive_margin=0.8, negative_margin=0.1),
    "triplet": TripletLoss(margin=0.2),
    "triplet, easiest and hardest": TripletLoss(margin=0.3, positive="easiest", negative="hardest"),
    "triplet, both hardest": TripletLoss(margin=0.1, positive="hardest", negative="hardest"),
    "multi-similarity": MultiSimilarityLoss(alpha=3, beta=20, base=0.3),
    "info-nce": InfoNCELoss(temperature=0.2),
    "supervised-contrastive": SupervisedContrastiveLoss(temperature=0.3),
    "circle": CircleLoss(margin=0.3, gamma=16),
}
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(b: int, m: int, d: int, *, classes: int = 4, seed: int = 0) -> Arguments:
    """Return unit vectors and labels far from zero, of either sign, on the device of the tests."""
    generator = torch.Generator().manual_seed(seed)
    rows = normalize(torch.randn(b + m, d, generator=generator), dim=1)
    labels = torch.randint(-(classes // 2), classes - classes // 2, (b + m,), generator=generator) * (1 << 58)
    return tuple(t.to(DEVICE) for t in (rows[:b], labels[:b], rows[b:], labels[b:]))  # type: ignore[return-value]


def options_of(b: int, m: int, d: int) -> dict[str, dict[str, Any]]:
    """Return every option of the loss by name."""
    generator = torch.Generator().manual_seed(b + m)
    scale, shift = torch.rand(d, generator=generator) + 0.5, torch.randn(d, generator=generator) / 8
    affine = scale.to(DEVICE), shift.to(DEVICE)
    rows = torch.arange(m, device=DEVICE)
    own = torch.arange(b, device=DEVICE)
    return {
        "plain": {},
        "affine": {"affine": affine},
        "renormalise": {"renormalise": True},
        "affine, renormalise": {"affine": affine, "renormalise": True},
        "ids": {"own_ids": own - 3, "reference_ids": rows % (2 * b) - 3},
        "positions": {"own_positions": own - 1},
        "mask": {"reference_mask": rows % 3 > 0},
        "all": {
            "affine": affine, "renormalise": True, "own_ids": own, "reference_ids": rows % (3 * b),
            "own_positions": own + 2, "reference_mask": rows % 7 > 0,
        },
    }  # fmt: skip


def double(value: Any) -> Any:
    """Return floating point as float64, inside tuples too."""
    if isinstance(value, tuple):
        return tuple(double(inner) for inner in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def value_and_gradient(given: Arguments, **options: Any) -> tuple[Tensor, Tensor]:
    """Return a loss and the batch's gradient."""
    embeddings = given[0].detach().requires_grad_()
    value = memory_loss(embeddings, *given[1:], **options)
    (gradient,) = torch.autograd.grad(value.sum(), embeddings)
    return value.detach(), gradient


def exactly(given: Arguments, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the dense reference's loss and gradient, in float64."""
    options = {name: double(value) for name, value in options.items()}
    return value_and_gradient(double(given), **{**options, "backend": "reference"})


def assert_close(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], allowed: float = 1e-5, least: float = 1e-6
) -> None:
    """`allowed` is relative to the norm; what is nearly zero may be off by `least`, a few last digits of a logit."""
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b.double()).norm() <= allowed * b.norm() + least
