"""What evaluation and serving ask of a recommender, whatever is inside it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from longview.data.batches import JaggedBatch


@runtime_checkable
class ScoreRecommender(Protocol):
    """Scores the whole catalogue directly (baselines)."""

    def score(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, num_items) float32 scores; higher is better."""
        ...


@runtime_checkable
class VectorRecommender(Protocol):
    """Scores by the inner product of a user vector and item vectors, so top-k never holds users × items."""

    max_length: int

    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, d) float32, one vector a history."""
        ...

    def item_vectors(self) -> Tensor:
        """Return (num_items, d) float32."""
        ...


Recommender = ScoreRecommender | VectorRecommender
