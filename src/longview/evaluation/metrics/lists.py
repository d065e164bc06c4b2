"""Metrics of what is recommended, whatever the target: coverage, novelty, popularity, new items.

Every function takes `lists` (n, k) int64, the items recommended to each user with −1 where there are fewer, and
returns one number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longview.data.dataset import PreparedData
from longview.models.baselines.log import first_times, training_counts

Rows = npt.NDArray[np.int64]

POPULAR_SHARE = 0.01
NEW_DAYS = 30


def coverage(lists: Rows, num_items: int) -> float:
    """Return the share of the catalogue that is in at least one list."""
    return len(np.unique(lists[lists >= 0])) / num_items


def novelty(lists: Rows, counts: Rows) -> float:
    """Return the mean of −log2(popularity share) over all places of all lists, in bits; higher is less known.

    The popularity share of an item is its part of the training events `counts` (num_items,); an item without
    any counts as having one.
    """
    information = -np.log2(np.maximum(counts, 1) / max(1, counts.sum()))
    return _mean(information[lists[lists >= 0]])


def popular_share(lists: Rows, counts: Rows) -> float:
    """Return the share of all places taken by the most popular 1 % of the catalogue (at least one item)."""
    head = max(1, round(POPULAR_SHARE * len(counts)))
    popular = np.zeros(len(counts), bool)
    popular[np.argsort(-counts, kind="stable")[:head]] = True
    return _mean(popular[lists[lists >= 0]])


def new_share(lists: Rows, new: npt.NDArray[np.bool_]) -> float:
    """Return the share of all places taken by new items, `new` (num_items,)."""
    return _mean(new[lists[lists >= 0]])


def new_items(data: PreparedData) -> npt.NDArray[np.bool_]:
    """Return which items are new when training ends, (num_items,).

    New is an item first seen in the last 30 days of training, or never; in order-only data, never.
    """
    if data.timestamps is None:
        return np.asarray(training_counts(data) == 0)
    first, end = first_times(data)
    return np.asarray(first > end - NEW_DAYS * 86_400)


def list_metrics(lists: Rows, data: PreparedData) -> dict[str, float]:
    """Return every list metric by name, `coverage@10` for lists of 10."""
    counts, k = training_counts(data), lists.shape[1]
    return {
        f"coverage@{k}": coverage(lists, data.num_items),
        f"novelty@{k}": novelty(lists, counts),
        f"popular_share@{k}": popular_share(lists, counts),
        f"new_share@{k}": new_share(lists, new_items(data)),
    }


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else 0.0
