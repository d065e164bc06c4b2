"""A model small enough to check by hand: vectors are given, and a user's vector is that of the newest item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.serving.recommender import Recommender

NUM_ITEMS = 40
COLOURS = ["red", "green", "blue", "white", None]


class NewestItem:
    """Recommends what is near the newest item."""

    max_length = 4

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        assert batch.max_length <= self.max_length
        return self.vectors[batch.items[batch.offsets[1:] - 1]]

    def item_vectors(self) -> Tensor:
        return self.vectors


def catalogue() -> pa.Table:
    numbers = range(NUM_ITEMS)
    return pa.table(
        {
            "id": [f"i{n}" for n in numbers],
            "title": [f"Thing {n}" for n in numbers],
            "colour": pa.array([COLOURS[n % 5] for n in numbers]),
            "tags": pa.array([[f"t{n % 3}", f"s{n % 4}"] for n in numbers]),
        }
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    generator = np.random.default_rng(5)
    lengths = generator.integers(1, 9, size=30)
    return write_prepared(
        Path(tmp_path_factory.mktemp("data")) / "small",
        name="small",
        events={"item": pa.array(generator.integers(NUM_ITEMS, size=lengths.sum()), pa.int32())},
        users=pa.table({"id": [f"u{n}" for n in range(30)], "length": lengths}),
        items=catalogue(),
        split=SplitSpec(),
    )


@pytest.fixture(scope="session")
def recommender(data: PreparedData) -> Recommender:
    vectors = torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(2))
    return Recommender(NewestItem(vectors), catalogue(), data)
