"""The losses over batch × memory, densely: every similarity at once, gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from longview.ops.memory_loss.losses import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
)
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.softmax_loss.numerics import accumulation_dtype

TINY = 1e-12  # least norm that a row is divided by


def anchor_losses(embeddings: Tensor, reference: Tensor, pairs: Pairs, loss: PairLoss, view: View) -> Tensor:
    """Return the loss of each anchor, (b,)."""
    s_bm = similarities(embeddings, reference, view)
    positive_bm, negative_bm = masks(pairs)
    if isinstance(loss, ContrastiveLoss):
        return torch.stack(contrastive_parts(s_bm, positive_bm, negative_bm, loss)).sum(0)
    if isinstance(loss, TripletLoss):
        return _triplet(s_bm, positive_bm, negative_bm, loss)
    if isinstance(loss, MultiSimilarityLoss):
        pulled = _log_sum_exp(-loss.alpha * (s_bm - loss.base), positive_bm)
        pushed = _log_sum_exp(loss.beta * (s_bm - loss.base), negative_bm)
        return functional.softplus(pulled) / loss.alpha + functional.softplus(pushed) / loss.beta
    if isinstance(loss, InfoNCELoss):
        logit_bm = s_bm / loss.temperature
        apart_bm = functional.softplus(_log_sum_exp(logit_bm, negative_bm)[:, None] - logit_bm)
        return apart_bm.where(positive_bm, 0.0).sum(1) / positive_bm.sum(1).clamp(min=1)
    if isinstance(loss, SupervisedContrastiveLoss):
        logit_bm = s_bm / loss.temperature
        rest = _log_sum_exp(logit_bm, positive_bm | negative_bm)
        mean = logit_bm.where(positive_bm, 0.0).sum(1) / positive_bm.sum(1).clamp(min=1)
        return (rest - mean).where(positive_bm.any(1), 0.0)
    assert isinstance(loss, CircleLoss)
    pull_bm = (1 + loss.margin - s_bm.detach()).clamp(min=0) * (s_bm - 1 + loss.margin)
    push_bm = (s_bm.detach() + loss.margin).clamp(min=0) * (s_bm - loss.margin)
    pulled, pushed = _log_sum_exp(-loss.gamma * pull_bm, positive_bm), _log_sum_exp(loss.gamma * push_bm, negative_bm)
    both = positive_bm.any(1) & negative_bm.any(1)
    return functional.softplus((pulled + pushed).where(both, -torch.inf))


def similarities(embeddings: Tensor, reference: Tensor, view: View) -> Tensor:
    """Return (b, m) inner products with the memory as `view` shows it."""
    wide = accumulation_dtype(torch.promote_types(embeddings.dtype, reference.dtype))
    embeddings, reference = embeddings.to(wide), reference.to(wide)
    if view.scale is not None and view.shift is not None:
        reference = reference * view.scale.detach().to(wide) + view.shift.detach().to(wide)
    if view.renormalise:
        reference = functional.normalize(reference, dim=1, eps=TINY)
    return embeddings @ reference.mT


def masks(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return which pairs are positive and which negative, (b, m) bool each."""
    same_bm = pairs.labels[:, None] == pairs.reference_labels[None, :]
    kept_bm = torch.ones_like(same_bm)
    if pairs.own_ids is not None and pairs.reference_ids is not None:
        kept_bm &= pairs.own_ids[:, None] != pairs.reference_ids[None, :]
    if pairs.own_positions is not None:
        place_m = torch.arange(len(pairs.reference_labels), device=same_bm.device)
        kept_bm &= pairs.own_positions[:, None] != place_m[None, :]
    if pairs.reference_mask is not None:
        kept_bm &= pairs.reference_mask[None, :]
    return same_bm & kept_bm, ~same_bm & kept_bm


def contrastive_parts(
    s_bm: Tensor, positive_bm: Tensor, negative_bm: Tensor, loss: ContrastiveLoss
) -> tuple[Tensor, Tensor]:
    """Return the sums over positives and over negatives, (b,) each."""
    pull_bm = (loss.positive_margin - s_bm).clamp(min=0).where(positive_bm, 0.0)
    push_bm = (s_bm - loss.negative_margin).clamp(min=0).where(negative_bm, 0.0)
    return pull_bm.sum(1), push_bm.sum(1)


def active_mean(s_bm: Tensor, positive_bm: Tensor, negative_bm: Tensor, loss: ContrastiveLoss) -> Tensor:
    """Return the mean over positive pairs with a loss plus the mean over negative pairs with one, a scalar."""
    pull, push = (part.sum() for part in contrastive_parts(s_bm, positive_bm, negative_bm, loss))
    pulled = (positive_bm & (s_bm < loss.positive_margin)).sum()
    pushed = (negative_bm & (s_bm > loss.negative_margin)).sum()
    return pull / pulled.clamp(min=1) + push / pushed.clamp(min=1)


def _triplet(s_bm: Tensor, positive_bm: Tensor, negative_bm: Tensor, loss: TripletLoss) -> Tensor:
    if not s_bm.shape[1]:
        return s_bm.sum(1)
    hardest = loss.positive == "hardest"
    inside_bm = s_bm.where(positive_bm, torch.inf if hardest else -torch.inf)
    s_p = inside_bm.amin(1) if hardest else inside_bm.amax(1)
    if loss.negative == "semi-hard":
        negative_bm = negative_bm & (s_bm < s_p[:, None])
    s_n = s_bm.where(negative_bm, -torch.inf).amax(1)
    both = positive_bm.any(1) & negative_bm.any(1)
    return (s_n.where(both, 0.0) - s_p.where(both, 0.0) + loss.margin).clamp(min=0).where(both, 0.0)


def _log_sum_exp(values: Tensor, taken: Tensor) -> Tensor:
    """Return log(sum of exp) over what is taken in each row; -inf for none, with gradient zero."""
    if not values.shape[1]:
        return values.sum(1) - torch.inf
    some = taken.any(1)
    top = values.where(taken, -torch.inf).amax(1).where(some, 0.0).detach()
    total = (values - top[:, None]).where(taken, -torch.inf).exp().sum(1)
    return (total.where(some, 1.0).log() + top).where(some, -torch.inf)
