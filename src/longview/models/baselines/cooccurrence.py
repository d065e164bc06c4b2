"""How many users have had each pair of items, one block of the item × item matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch, jagged_rows
from longview.data.dataset import PreparedData
from longview.models.baselines.log import training_rows
from longview.ops.jagged import segment_ids

Rows = npt.NDArray[np.int64]

BLOCK_CELLS = 1 << 24
DENSE_CELLS = 1 << 26
PAIRS_AT_ONCE = 1 << 24
PAIR_COST = 1_000  # multiply-adds of a dense product in the time that counting one pair takes


@dataclass(frozen=True)
class Interactions:
    """Who has had what in training, each (user, item) once: `items` end to end by user, `offsets` between users."""

    items: Rows
    offsets: Rows
    num_items: int

    @classmethod
    def of(cls, data: PreparedData) -> Interactions:
        """Return the training interactions of `data` as a set, without order, repeats and users without any."""
        rows, offsets = training_rows(data)
        users = np.repeat(np.arange(data.num_users), np.diff(offsets))
        cells = np.sort(users * data.num_items + data.items[rows])
        cells = cells[np.diff(cells, prepend=-1) > 0]
        users, items = np.divmod(cells, data.num_items)
        lengths = np.bincount(users, minlength=data.num_users)
        return cls(items, np.concatenate([[0], np.cumsum(lengths[lengths > 0])]), data.num_items)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Rows:
        """Users of each item, (num_items,) int64: the diagonal of the matrix."""
        return np.bincount(self.items, minlength=self.num_items)


def cooccurrence_blocks(interactions: Interactions) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, counts) of the item × item matrix: counts (rows, num_items) float32, diagonal included.

    Counts pairs one by one where histories are short, and multiplies dense matrices where they are long.
    """
    lengths = np.diff(interactions.offsets)
    pairs = float((lengths.astype(np.float64) ** 2).sum())
    products = float(interactions.num_users) * interactions.num_items**2
    if pairs * PAIR_COST < products:
        yield from _by_pairs(interactions)
    else:
        yield from _by_products(interactions)


def _blocks(num_items: int) -> Iterator[slice]:
    height = max(1, BLOCK_CELLS // num_items)
    for begin in range(0, num_items, height):
        yield slice(begin, min(begin + height, num_items))


def _by_pairs(interactions: Interactions) -> Iterator[tuple[slice, Tensor]]:
    num_items, offsets = interactions.num_items, interactions.offsets
    users = np.repeat(np.arange(interactions.num_users), np.diff(offsets))
    order = np.argsort(interactions.items, kind="stable")
    by_item, owners = interactions.items[order], users[order]
    for rows in _blocks(num_items):
        first, last = np.searchsorted(by_item, [rows.start, rows.stop])
        block = torch.zeros((rows.stop - rows.start) * num_items)
        for begin, end in _spans(np.diff(offsets)[owners[first:last]]):
            owner = owners[first + begin : first + end]
            events, inner = jagged_rows(offsets[owner], offsets[owner + 1])
            row = np.repeat(by_item[first + begin : first + end] - rows.start, np.diff(inner))
            cells = torch.from_numpy(row * num_items + interactions.items[events])
            block.index_add_(0, cells, torch.ones(cells.numel()))
        yield rows, block.view(-1, num_items)


def _spans(lengths: Rows) -> Iterator[tuple[int, int]]:
    """Yield ranges whose lengths add up to about PAIRS_AT_ONCE."""
    group = np.cumsum(lengths) // PAIRS_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(lengths)]
    yield from ((a, b) for a, b in pairwise(edges) if b > a)


def _by_products(interactions: Interactions) -> Iterator[tuple[slice, Tensor]]:
    num_items, offsets = interactions.num_items, interactions.offsets
    height = max(1, DENSE_CELLS // num_items)
    for rows in _blocks(num_items):
        block = torch.zeros(rows.stop - rows.start, num_items)
        for begin in range(0, interactions.num_users, height):
            part = offsets[begin : begin + height + 1]
            users = np.repeat(np.arange(len(part) - 1), np.diff(part))
            dense = torch.zeros(len(part) - 1, num_items)
            dense[torch.from_numpy(users), torch.from_numpy(interactions.items[part[0] : part[-1]])] = 1
            block += dense[:, rows].T @ dense
        yield rows, block


def distinct_bags(batch: JaggedBatch, num_items: int) -> tuple[Tensor, Tensor]:
    """Return the distinct items of every history end to end (pairs,) int64, and where each begins (batch,) int64."""
    rows = segment_ids(batch.offsets, batch.num_tokens)
    cells = torch.unique(rows * num_items + batch.items)
    begins = torch.arange(batch.num_sequences, device=cells.device) * num_items
    return cells % num_items, torch.searchsorted(cells, begins)
