"""Popularity: everyone gets what most people took, of all time or of the last days."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.models.baselines.log import count_items, training_counts, training_rows

DAY = 86_400


class Popularity:
    """Score every item by its number of training events, the same for every user.

    Args:
        days: count only the last `days` days before the end of training (its newest event); items that tie
            there, as most do with none, are ordered by their count of all time. None counts all of training.
    """

    def __init__(self, *, days: float | None = None) -> None:
        if days is not None and days <= 0:
            raise InputError(f"popularity: days={days} must be above 0 (or None for all of training)")
        self.days = days
        self.scores = torch.empty(0)

    def fit(self, data: PreparedData) -> Self:
        """Count the training events of `data`.

        Raises:
            InputError: a window of days on data that has order only.
        """
        all_time = training_counts(data)
        recent = all_time if self.days is None else self._recent(data, self.days)
        self.scores = torch.from_numpy(_levels(recent, all_time))
        return self

    def score(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, num_items) float32, one row repeated: 0 for the least popular level, then 1, 2, ..."""
        return self.scores.to(batch.offsets.device).expand(batch.num_sequences, -1)

    @staticmethod
    def _recent(data: PreparedData, days: float) -> npt.NDArray[np.int64]:
        if data.timestamps is None:
            raise InputError(f"{data.meta.name} has no time column, so there are no last {days:g} days of it")
        rows, _ = training_rows(data)
        times = data.timestamps[rows]
        return count_items(data.items[rows[times > times.max(initial=0) - days * DAY]], data.num_items)


def _levels(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the dense rank of the pairs (first, second): exact in float32 where the counts might not be."""
    _, levels = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
    return levels.reshape(-1).astype(np.float32)
