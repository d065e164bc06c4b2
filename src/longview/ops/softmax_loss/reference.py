"""The softmax losses written out: dense, obvious, any dtype. The fast paths must agree with these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def full_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the whole catalogue; holds (n, num_items) logits. See the package for arguments."""
    logits = queries @ items.mT / temperature
    return _mean(functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none"), counted)


def sampled_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    negative_log_q: Tensor | None = None,
    target_log_q: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the target among itself and its group's negatives; holds (n, 1 + m) logits."""
    own = negatives.view(-1, negatives.shape[-1])[query_groups(len(queries), negatives, queries.device)]  # (n, m)
    target_logits = (queries * items[targets]).sum(-1) / temperature
    logits = torch.einsum("nd,nmd->nm", queries, items[own]) / temperature
    if negative_log_q is not None:
        rows = negative_log_q.view(-1, negatives.shape[-1])
        logits = logits - rows[query_groups(len(queries), negatives, queries.device)]
    if target_log_q is not None:
        target_logits = target_logits - target_log_q
    # Beside a target of 0 its gradient is minus the sum of the negatives' shares, exact where its own share is near 1.
    apart = (logits - target_logits[:, None]).masked_fill(own == targets[:, None], float("-inf"))
    everything = functional.pad(apart, (1, 0))
    return _mean(functional.cross_entropy(everything, torch.zeros_like(targets), reduction="none"), counted)


def _mean(losses: Tensor, counted: Tensor | None) -> Tensor:
    return losses.mean() if counted is None else losses[counted].sum() / counted.sum().clamp(min=1)


def query_groups(num_queries: int, negatives: Tensor, device: torch.device) -> Tensor:
    """Return which row of `negatives` each query uses, (n,) int64: equal runs of ceil(n / groups) queries."""
    groups = 1 if negatives.dim() == 1 else negatives.shape[0]
    return torch.arange(num_queries, device=device) // -(-num_queries // groups)
