"""The training part of a log, as every baseline reads it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longview.data.batches import jagged_rows
from longview.data.dataset import PreparedData
from longview.errors import InputError

Rows = npt.NDArray[np.int64]

CHUNK = 1 << 24


def training_rows(data: PreparedData) -> tuple[Rows, Rows]:
    """Return the event rows that train, in user order, and the offsets (num_users + 1,) between users."""
    return jagged_rows(data.offsets[:-1], data.split.train_end)


def training_counts(data: PreparedData) -> Rows:
    """Return how many training events each item has, (num_items,) int64."""
    counts = count_items(data.items, data.num_items)
    held_out, _ = jagged_rows(data.split.train_end, data.offsets[1:])
    return counts - count_items(data.items[held_out], data.num_items)


def count_items(items: npt.NDArray[np.integer], num_items: int) -> Rows:
    """Return the number of times each of `num_items` items occurs, (num_items,) int64."""
    counts = np.zeros(num_items, np.int64)
    for start in range(0, len(items), CHUNK):  # bincount widens its input: bound that copy
        counts += np.bincount(items[start : start + CHUNK], minlength=num_items)
    return counts


def first_times(data: PreparedData) -> tuple[Rows, int]:
    """Return the first training timestamp of each item (num_items,), and the last of all: the end of training.

    An item without a training event has the largest int64 for its first time.

    Raises:
        InputError: the data has order only.
    """
    if data.timestamps is None:
        raise InputError(f"{data.meta.name}: no time column, so there is no first time of an item")
    rows, _ = training_rows(data)
    first = np.full(data.num_items, np.iinfo(np.int64).max)
    np.minimum.at(first, data.items[rows], data.timestamps[rows])
    return first, int(data.timestamps[rows].max(initial=0))
