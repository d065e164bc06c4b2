"""Exact top-k of inner products in blocks of queries × items, so that no larger score matrix ever exists."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.ops.jagged import segment_ids
from longview.ops.topk.reference import Jagged

ITEM_BLOCK = 1 << 16
CPU_SCORES = 1 << 22  # 16 MiB of float32: about a last-level cache, and few enough blocks on a busy machine
DEVICE_SCORES = 1 << 26


def topk_in_blocks(
    queries: Tensor,
    items: Tensor,
    k: int,
    *,
    exclude: Jagged | None,
    block: int | None,
) -> tuple[Tensor, Tensor]:
    """Return scores (b, k) and indices (b, k); at most `block` scores are held at a time.

    Arguments are valid (`longview.ops.topk` checks them).
    """
    block = block or (CPU_SCORES if queries.device.type == "cpu" else DEVICE_SCORES)
    width = min(items.shape[0], ITEM_BLOCK, max(block, k))
    height = max(1, block // width)
    scores = queries.new_empty(queries.shape[0], k)
    indices = torch.empty(queries.shape[0], k, dtype=torch.int64, device=queries.device)
    bounds = None if exclude is None else exclude[1][::height].tolist()
    for number, begin in enumerate(range(0, queries.shape[0], height)):
        chunk = slice(begin, min(begin + height, queries.shape[0]))
        excluded = None
        if exclude is not None and bounds is not None:
            end = bounds[number + 1] if number + 1 < len(bounds) else exclude[0].numel()
            within = exclude[1][begin : chunk.stop + 1] - bounds[number]
            pairs = exclude[0][bounds[number] : end]
            excluded = (segment_ids(within, pairs.numel()), pairs)
        scores[chunk], indices[chunk] = _one_chunk(queries[chunk], items, k, excluded, width)
    return scores, indices


def select_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of each row of `scores` (b, n) and their columns, largest first.

    Equal scores come in the order of their columns, lower first, and the lower column is the one that stays
    when only some of the equal ones fit. Scores of −inf are never chosen: such places hold −inf and column −1.
    """
    spare = min(k + 1, scores.shape[1])
    values, columns = scores.topk(spare, dim=1, sorted=True)
    if spare > k:  # torch.topk keeps any of several equal scores at the edge: choose again in rows where that matters
        edge = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
        rows = edge.nonzero().squeeze(1)
        values, columns = values[:, :k], columns[:, :k]
        if rows.numel():
            tied = scores[rows]
            chosen = _first_of_equals(tied, values[rows, k - 1 :], k)
            values, columns = values.contiguous(), columns.contiguous()
            columns[rows], values[rows] = chosen, tied.gather(1, chosen)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    return values, columns.masked_fill(values == -torch.inf, -1)


def _one_chunk(
    queries: Tensor, items: Tensor, k: int, excluded: tuple[Tensor, Tensor] | None, width: int
) -> tuple[Tensor, Tensor]:
    num_items = items.shape[0]
    if num_items <= width:
        return _one_block(queries, items, k, excluded)
    starts = list(range(0, num_items, width))
    if excluded is not None:  # by item, so that each block's pairs are one slice
        order = excluded[1].argsort()
        excluded = (excluded[0][order], excluded[1][order])
        edges = torch.searchsorted(excluded[1], torch.tensor([*starts, num_items], device=items.device)).tolist()
    values = queries.new_empty(queries.shape[0], 0)
    columns = torch.empty(queries.shape[0], 0, dtype=torch.int64, device=queries.device)
    for number, start in enumerate(starts):
        part = items[start : start + width]
        within = None
        if excluded is not None:
            here = slice(edges[number], edges[number + 1])
            within = (excluded[0][here], excluded[1][here] - start)
        new_values, new_columns = _one_block(queries, part, min(k, part.shape[0]), within)
        values = torch.cat([values, new_values], dim=1)
        columns = torch.cat([columns, torch.where(new_columns < 0, -1, new_columns + start)], dim=1)
        # Earlier blocks hold lower indices and the sort is stable, so equal scores stay in index order.
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, columns = values[:, :k], columns.gather(1, order)[:, :k]
    return values, columns


def _one_block(queries: Tensor, items: Tensor, k: int, excluded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    scores = queries @ items.T
    if excluded is not None:
        scores[excluded] = -torch.inf
    return select_topk(scores, k)


def _first_of_equals(scores: Tensor, edge: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest scores of each row, the lower column first among equal ones.

    `edge` (rows, 1) is the k-th largest score: all above it are in, then the first that equal it, in column order.
    """
    above, equal = scores > edge, scores == edge
    places = k - above.sum(1, keepdim=True, dtype=torch.int32)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= places))
    return chosen.nonzero()[:, 1].view(-1, k)
