"""Ids sorted once: which rows of a batch share an id, found on the device without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """The n lookups of a batch grouped by id; there are U distinct ids, and only the device knows U.

    Attributes:
        order: (n,) int64; lookups sorted by id, those of one id in their order in the batch.
        rank: (n,) int64; the segment of each sorted lookup, 0 to U - 1.
        unique: (n,) int64; the id of each segment, ascending; places from U on are -1.
        offsets: (n + 1,) int64; segment u is order[offsets[u]:offsets[u + 1]]; places from U on are n.
        num_segments: (1,) int64; U.
    """

    order: Tensor
    rank: Tensor
    unique: Tensor
    offsets: Tensor
    num_segments: Tensor


def group_ids(ids: Tensor, num_rows: int) -> Segments:
    """Return the segments of `ids` (n,) int64, all below `num_rows`. n is the capacity: no shape depends on values.

    Example:
        >>> segments = group_ids(torch.tensor([7, 3, 7]), 10)
        >>> segments.order.tolist(), segments.unique.tolist(), segments.offsets.tolist()
        ([1, 0, 2], [3, 7, -1], [0, 1, 3, 3])
    """
    n = len(ids)
    # Half the bytes to sort where they suffice.
    ordered, order = torch.sort(ids.int() if num_rows < 1 << 31 else ids, stable=True)
    starts = torch.ones(n, dtype=torch.bool, device=ids.device)
    torch.ne(ordered[1:], ordered[:-1], out=starts[1:])
    rank = starts.cumsum(0) - 1
    # Lookups that start no segment write to a place past the end, which nobody reads.
    place = torch.where(starts, rank, n + 1)
    offsets = torch.full((n + 2,), n, device=ids.device)
    offsets.scatter_(0, place, torch.arange(n, device=ids.device))
    unique = torch.full((n + 2,), -1, device=ids.device)
    unique.scatter_(0, place, ordered.long())
    count = rank[-1:] + 1 if n else rank.new_zeros(1)
    return Segments(order, rank, unique[:n], offsets[: n + 1], count)
