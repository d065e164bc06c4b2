"""Baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, Self

from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.errors import InputError, suggestion
from longview.models.baselines.ease import EASE
from longview.models.baselines.item_knn import ItemKNN
from longview.models.baselines.popularity import Popularity


class Baseline(Protocol):
    """A `ScoreRecommender` that learns from the training rows of a data set in one pass."""

    def fit(self, data: PreparedData) -> Self:
        """Learn from the training rows of `data` and return the baseline itself."""
        ...

    def score(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, num_items) float32 scores; higher is better."""
        ...


BASELINES: dict[str, Callable[..., Baseline]] = {
    "popularity": Popularity,
    "popularity-7d": partial(Popularity, days=7),
    "item-knn": ItemKNN,
    "ease": EASE,
}


def build(name: str, **settings: Any) -> Baseline:
    """Return the baseline called `name`, not fitted yet; `settings` go to its constructor.

    Example:
        >>> build("item-knn", neighbours=20).neighbours
        20

    Raises:
        InputError: no baseline of that name (with the nearest one), or no such setting.
    """
    if name not in BASELINES:
        raise InputError(f"no baseline {name!r}{suggestion(name, BASELINES)}; there are {', '.join(BASELINES)}")
    try:
        return BASELINES[name](**settings)
    except TypeError as error:
        raise InputError(f"baseline {name}: {error}") from None
