"""From the sums of both walks to losses, and to what the walks' gradients are multiplied with, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.ops.memory_loss.forms import Plan
from longview.ops.memory_loss.tiles import Running
from longview.ops.softmax_loss.numerics import LOG2_E


class End(NamedTuple):
    """Losses (b, 1), and what the positives' and negatives' weighted sums are multiplied with, (b, 1)."""

    losses: Tensor
    positive: Tensor
    negative: Tensor


def finish(plan: Plan, positives: Running, negatives: Running, apart: bool) -> End:
    """Return losses and factors from the sums of both walks; with `apart` divided by the numbers of active pairs."""
    if plan.kind == "contrastive":
        a, b = torch.ones_like(positives.first), torch.ones_like(negatives.first)
        if apart:
            a, b = (a / walk.second.sum().clamp(min=1) for walk in (positives, negatives))
        return End(a * positives.first + b * negatives.first, -a, b)
    if plan.kind == "triplet":
        both = (positives.first != -torch.inf) & (negatives.first != -torch.inf)
        over = (negatives.first - plan.positives.sign * positives.first + plan.margin).where(both, 0.0)
        active = (over > 0).to(over.dtype)
        return End(over.clamp(min=0), -active, active)
    log_n = log_of(negatives)
    if plan.kind == "info-nce":
        count = positives.third.clamp(min=1)
        factor = plan.rate_n * positives.second / count
        pull, push = -plan.rate_n * inverse_of(positives.third), factor * inverse_of(negatives.second)
        return End(positives.first / count, pull, push)
    if plan.kind == "supervised-contrastive":
        count = positives.second
        some = count > 0
        losses = (log_n - plan.rate_n * positives.first / count.clamp(min=1)).where(some, 0.0)
        factor = (plan.rate_n * inverse_of(negatives.second)).where(some, 0.0)
        return End(losses, -plan.rate_n * inverse_of(count), factor)
    log_p = log_of(positives)
    inverse_p, inverse_n = inverse_of(positives.second), inverse_of(negatives.second)
    if plan.kind == "multi-similarity":
        losses = functional.softplus(log_p) * plan.rate_p + functional.softplus(log_n) * plan.rate_n
        return End(losses, -log_p.sigmoid() * inverse_p, log_n.sigmoid() * inverse_n)
    both = (positives.second != 0) & (negatives.second != 0)
    log = (log_p + log_n).where(both, -torch.inf)
    share = log.sigmoid() * plan.rate_n
    return End(functional.softplus(log), -share * inverse_p, share * inverse_n)


def log_of(walk: Running) -> Tensor:
    """Return the log of the sum of powers, -inf where there was none."""
    return walk.second.log() + walk.first.where(walk.first != -torch.inf, 0.0) / LOG2_E


def inverse_of(total: Tensor) -> Tensor:
    """Return 1 / total, 0 where the total is 0."""
    return (1 / total.where(total != 0, 1.0)).where(total != 0, 0.0)
