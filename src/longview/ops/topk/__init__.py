"""Exact top-k of inner products with exclusions, without ever holding queries × items."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.topk.blocked import select_topk, topk_in_blocks
from longview.ops.topk.reference import Jagged, dense_topk

__all__ = ["Jagged", "blocked_topk", "dense_topk", "select_topk"]


def blocked_topk(
    queries: Tensor,
    items: Tensor,
    k: int,
    *,
    exclude: Jagged | None = None,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` items with the largest inner product for every query, best first.

    Exact. Equal scores are ordered by item index, lower first, whatever the block. A query with fewer than `k`
    items left has its last places filled with score −inf and index −1; so has an item whose score is −inf.

    Args:
        queries: (b, d), any floating type.
        items: (n, d), same type and device.
        exclude: items each query must not get, as item indices end to end (total,) int64 and offsets (b + 1,)
            int64; repeats are harmless.
        allow: (n,) bool; only items where it is true are returned, to any query.
        deny: (m,) int64; items that are returned to no query. Wins over `allow`.
        block: scores held at a time (default 4 M on a CPU, 64 M on a device).

    Returns:
        scores (b, k) of the type of `queries` and indices (b, k) int64.

    Raises:
        InputError: `k` below 1 or above n, or shapes that do not fit.

    Example:
        >>> import torch
        >>> scores, indices = blocked_topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0], [3, 0], [3, 9]]), k=2)
        >>> indices.tolist()
        [[1, 2]]
    """
    _check(queries, items, k, exclude, allow)
    if allow is None and deny is None:
        return topk_in_blocks(queries, items, k, exclude=exclude, block=block)
    kept = torch.ones(items.shape[0], dtype=torch.bool, device=items.device) if allow is None else allow.clone()
    if deny is not None:
        kept[deny] = False
    columns = kept.nonzero().squeeze(1)
    if exclude is not None:
        exclude = _renumber(exclude, kept)
    found = min(k, columns.numel())
    scores = queries.new_full((queries.shape[0], k), -torch.inf)
    indices = torch.full((queries.shape[0], k), -1, dtype=torch.int64, device=queries.device)
    if found:
        # Scoring only what may be returned keeps a narrow allow list cheap; order is kept, so ties are too.
        scores[:, :found], inner = topk_in_blocks(queries, items[columns], found, exclude=exclude, block=block)
        indices[:, :found] = torch.where(inner < 0, -1, columns[inner])
    return scores, indices


def _renumber(exclude: Jagged, kept: Tensor) -> Jagged:
    """Return `exclude` in the numbering of the kept items, without the pairs that are not kept."""
    indices, offsets = exclude
    stays = kept[indices]
    before = torch.cat([offsets.new_zeros(1), stays.cumsum(0)])
    numbers = kept.cumsum(0) - 1
    return numbers[indices[stays]], before[offsets]


def _check(queries: Tensor, items: Tensor, k: int, exclude: Jagged | None, allow: Tensor | None) -> None:
    if queries.dim() != 2 or items.dim() != 2 or queries.shape[1] != items.shape[1]:
        raise InputError(
            f"top-k: expected queries (b, d) and items (n, d), got {tuple(queries.shape)} and {tuple(items.shape)}"
        )
    if not 1 <= k <= items.shape[0]:
        raise InputError(f"k={k} is outside 1 to {items.shape[0]}, the number of items in the catalogue")
    if exclude is not None and exclude[1].numel() != queries.shape[0] + 1:
        raise InputError(
            f"top-k: exclude has offsets for {exclude[1].numel() - 1} rows but there are {queries.shape[0]} queries"
        )
    if allow is not None and (allow.dtype != torch.bool or allow.shape != (items.shape[0],)):
        raise InputError(f"top-k: allow must be a bool mask of shape ({items.shape[0]},), got {tuple(allow.shape)}")
