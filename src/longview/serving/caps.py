"""Caps per category: not all of the list from one shelf."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from longview.errors import InputError, suggestion


@dataclass(frozen=True)
class Caps:
    """At most `cap` items of a category.

    `codes` (num_items, most) int64 are the categories of every item, filled up with `count`, which is no category.
    """

    codes: Tensor
    count: int
    cap: int

    @classmethod
    def of(cls, items: pa.Table, column: str, cap: int) -> Caps:
        """Read text, number or list-of-text column `column`; an item without a category is never capped.

        Raises:
            InputError: no such column, or a cap below 1.
        """
        if cap < 1:
            raise InputError(f"max_per_category={cap}: at least 1")
        if column not in items.column_names:
            features = [name for name in items.column_names if name not in ("id", "title")]
            raise InputError(
                f"the catalogue has no column {column!r}{suggestion(column, features)}; "
                + (f"its columns: {', '.join(features)}" if features else "it was prepared without item features")
            )
        values = items[column].combine_chunks()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            owner, flat = pc.list_parent_indices(values).to_numpy(), pc.list_flatten(values)
        else:
            owner, flat = np.arange(len(values)), values
        codes = np.asarray(pc.dictionary_encode(flat).indices.fill_null(-1), np.int64)
        owner, codes = owner[codes >= 0], codes[codes >= 0]
        count = int(codes.max(initial=-1)) + 1
        lengths = np.bincount(owner, minlength=len(values))
        place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        table = np.full((len(values), max(1, int(lengths.max(initial=0)))), count)
        table[owner, place] = codes
        return cls(torch.from_numpy(table), count, cap)


def keep_within_caps(candidates: Tensor, caps: Caps, k: int) -> Tensor:
    """Return which `candidates` stay when each row is read best first and the caps hold.

    An item of several categories needs room in each of them. A row stops at `k` kept items.

    Args:
        candidates: (b, fetched) int64 item indices, best first, −1 where there is none.

    Returns:
        (b, fetched) bool.
    """
    codes = torch.cat([caps.codes, torch.full((1, caps.codes.shape[1]), caps.count)])
    codes = codes.to(candidates.device)
    rows = torch.arange(candidates.shape[0], device=candidates.device)[:, None]
    taken = torch.zeros(candidates.shape[0], caps.count + 1, dtype=torch.int32, device=candidates.device)
    total = torch.zeros(candidates.shape[0], dtype=torch.int64, device=candidates.device)
    kept = torch.zeros_like(candidates, dtype=torch.bool)
    for place in range(candidates.shape[1]):
        item = candidates[:, place]
        here = codes[item]  # item −1 reads the last row, which has no category
        fits = (taken[rows, here] < caps.cap) | (here == caps.count)
        kept[:, place] = fits.all(1) & (item >= 0) & (total < k)
        taken[rows, here] += kept[:, place : place + 1].int()
        total += kept[:, place]
        if bool((total >= k).all()):
            break
    return kept
