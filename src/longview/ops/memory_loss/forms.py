"""What the losses have in common: a walk over the negatives, one over the positives, and what each sums.

The sums of a form are described in `triton_sums`; `tiles` makes the same in plain torch.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

from longview.ops.memory_loss.losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
)
from longview.ops.memory_loss.pairs import Kind

Sums = Literal["margin", "power", "circle", "best", "pull", "mean"]


class Form(NamedTuple):
    """What one walk sums over which pairs; `sign` -1 for the less similarity the more."""

    sums: Sums
    pairs: Kind
    sign: int = 1
    factor: float = 1.0
    u: float = 0.0
    v: float = 0.0


class Plan(NamedTuple):
    """A loss as its two walks, and what joins them.

    kind: the name of the loss.
    positives_first: the negatives' walk needs the positives' sums, not the other way round.
    rate_p, rate_n, margin: settings of the end (`triton_finish`).
    """

    kind: str
    positives: Form
    negatives: Form
    positives_first: bool = False
    rate_p: float = 0.0
    rate_n: float = 0.0
    margin: float = 0.0


@functools.lru_cache(maxsize=256)
def plan_of(loss: PairLoss) -> Plan:
    """Return the walks of a loss."""
    if isinstance(loss, ContrastiveLoss):
        pull = Form("margin", "positive", -1, u=-loss.positive_margin)
        return Plan("contrastive", pull, Form("margin", "negative", u=loss.negative_margin))
    if isinstance(loss, TripletLoss):
        pull = Form("best", "positive", -1 if loss.positive == "hardest" else 1)
        less = loss.negative == "semi-hard"
        return Plan("triplet", pull, Form("best", "negative"), positives_first=less, margin=loss.margin)
    if isinstance(loss, MultiSimilarityLoss):
        pull = Form("power", "positive", -1, loss.alpha, loss.base)
        push = Form("power", "negative", 1, loss.beta, -loss.base)
        return Plan("multi-similarity", pull, push, rate_p=1 / loss.alpha, rate_n=1 / loss.beta)
    if isinstance(loss, InfoNCELoss):
        scale = 1 / loss.temperature
        pull, push = Form("pull", "positive", 1, scale), Form("power", "negative", 1, scale)
        return Plan("info-nce", pull, push, rate_n=1 / loss.temperature)
    if isinstance(loss, SupervisedContrastiveLoss):
        push = Form("power", "all", 1, 1 / loss.temperature)
        return Plan("supervised-contrastive", Form("mean", "positive"), push, rate_n=1 / loss.temperature)
    assert isinstance(loss, CircleLoss)
    scale = loss.gamma
    pull = Form("circle", "positive", -1, scale, 1 + loss.margin, 1 - loss.margin)
    push = Form("circle", "negative", 1, scale, loss.margin, -loss.margin)
    return Plan("circle", pull, push, rate_n=loss.gamma)
