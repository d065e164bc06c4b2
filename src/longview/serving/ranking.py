"""The best items for each query, with what must be left out left out."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.ops.topk import Jagged, blocked_topk
from longview.serving.caps import Caps, keep_within_caps


def best_items(
    queries: Tensor,
    items: Tensor,
    k: int,
    *,
    exclude: Jagged | None = None,
    allow: Tensor | None = None,
    caps: Caps | None = None,
) -> tuple[Tensor, Tensor]:
    """Return scores (b, k) and indices (b, k) of the best items of each query, best first, −1 where none is left.

    Exact with caps too: more candidates are fetched for the rows that need them, until each has k or none are left.
    `exclude` and `allow` are those of `longview.ops.topk.blocked_topk`.
    """
    if caps is None:
        return blocked_topk(queries, items, k, exclude=exclude, allow=allow)
    catalogue = items.shape[0]
    fetch = min(4 * k + 16, catalogue)
    scores = queries.new_full((queries.shape[0], k), -torch.inf)
    chosen = torch.full((queries.shape[0], k), -1, dtype=torch.int64, device=queries.device)
    left = torch.arange(queries.shape[0], device=queries.device)
    while left.numel():
        some = None if exclude is None else _rows_of(exclude, left)
        found, candidates = blocked_topk(queries[left], items, fetch, exclude=some, allow=allow)
        kept = keep_within_caps(candidates, caps, k)
        scores[left], chosen[left] = _compact(found, candidates, kept, k)
        full = (kept.sum(1) >= k) | (candidates[:, -1] < 0)
        left = left[~full] if fetch < catalogue else left[:0]
        fetch = min(4 * fetch, catalogue)
    return scores, chosen


def _rows_of(jagged: Jagged, rows: Tensor) -> Jagged:
    values, offsets = jagged
    lengths = offsets.diff()[rows]
    ends = lengths.cumsum(0)
    within = torch.arange(int(lengths.sum()), device=values.device)
    at = within + torch.repeat_interleave(offsets[:-1][rows] - (ends - lengths), lengths)
    return values[at], torch.cat([ends.new_zeros(1), ends])


def _compact(scores: Tensor, candidates: Tensor, kept: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Move the kept candidates to the front, in order, and cut to `k`."""
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :k]
    stays = kept.gather(1, order)
    scores, candidates = scores.gather(1, order), candidates.gather(1, order)
    return scores.masked_fill(~stays, -torch.inf), candidates.masked_fill(~stays, -1)
