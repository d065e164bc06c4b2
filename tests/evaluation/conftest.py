"""Small data sets and recommenders whose answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec

Make = Callable[..., PreparedData]


@pytest.fixture
def make_data(tmp_path: Path) -> Make:
    """Return a function that prepares sequences of item numbers, with times where given."""

    def make(
        sequences: Sequence[Sequence[int]],
        *,
        num_items: int,
        times: Sequence[Sequence[int]] | None = None,
        split: SplitSpec | None = None,
    ) -> PreparedData:
        events: dict[str, object] = {"item": np.concatenate([np.array(s, np.int32) for s in sequences])}
        if times is not None:
            events["timestamp"] = np.concatenate([np.array(t, np.int64) for t in times])
        return write_prepared(
            tmp_path / f"data{len(list(tmp_path.iterdir()))}",
            name="small",
            events=events,
            users=pa.table({"id": [f"u{i}" for i in range(len(sequences))], "length": [len(s) for s in sequences]}),
            items=pa.table({"id": [f"i{i}" for i in range(num_items)], "title": [""] * num_items}),
            split=split or SplitSpec(),
        )

    return make


class Fixed:
    """The same scores for everyone."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = torch.tensor(scores)

    def score(self, batch: JaggedBatch) -> torch.Tensor:
        return self.scores.expand(batch.num_sequences, -1)


class Vectors(torch.nn.Module):
    """User vector: the sum of the vectors of the newest items. Whole numbers, so that sums are exact."""

    max_length = 3

    def __init__(self, num_items: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randint(-2, 3, (num_items, 4), generator=generator).float())

    def user_vectors(self, batch: JaggedBatch) -> torch.Tensor:
        assert not self.training, "evaluation runs in eval mode"
        assert batch.max_length <= self.max_length
        return torch.nn.functional.embedding_bag(batch.items, self.table, batch.offsets[:-1], mode="sum")

    def item_vectors(self) -> torch.Tensor:
        return self.table


@pytest.fixture
def random_data(make_data: Make) -> PreparedData:
    """60 users with 2 to 12 events on 40 items, with repeats."""
    generator = np.random.default_rng(0)
    return make_data([generator.integers(0, 40, generator.integers(2, 13)) for _ in range(60)], num_items=40)
