"""Exact top-k by sorting every score: obvious, slow, and what the fast path is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.ops.jagged import segment_ids

Jagged = tuple[Tensor, Tensor]
"""Item indices of all rows end to end (total,) int64, and offsets (rows + 1,) int64."""


def dense_topk(
    queries: Tensor,
    items: Tensor,
    k: int,
    *,
    exclude: Jagged | None = None,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` best items of every query; see `longview.ops.topk.blocked_topk`."""
    scores = queries @ items.T
    if allow is not None:
        scores[:, ~allow] = -torch.inf
    if deny is not None:
        scores[:, deny] = -torch.inf
    if exclude is not None:
        indices, offsets = exclude
        scores[segment_ids(offsets, indices.numel()), indices] = -torch.inf
    values, order = scores.sort(dim=1, descending=True, stable=True)
    values, order = values[:, :k], order[:, :k]
    return values, order.masked_fill(values == -torch.inf, -1)
