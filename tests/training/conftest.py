"""A tiny data set whose next item can be learned, and a configuration that trains on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.training.config import RunConfig, resolve_config

TINY = (
    "model.width=16",
    "model.max_length=8",
    "model.dropout=0.1",
    "model.embedding.dropout=0.1",
    "batches.batch_size=16",
    "batches.windows=latest",
    "loss.negative_groups=4",
    "optimiser.rate=0.01",
    "optimiser.warmup_steps=2",
    "loop.epochs=2",
)


def write_tiny(path: Path, *, users: int = 60, items: int = 30, seed: int = 0) -> PreparedData:
    """Users walk round the catalogue, one item after the next, and stumble now and then."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 14, users)
    walks = [(generator.integers(items) + np.cumsum(generator.integers(0, 10, n) < 9)) % items for n in lengths]
    events = {
        "item": np.concatenate(walks).astype(np.int32),
        "timestamp": np.concatenate([np.arange(n) // 2 * 3600 for n in lengths]).astype(np.int64),
    }
    return write_prepared(
        path,
        name="tiny",
        events=events,
        users=pa.table({"id": [f"user {u}" for u in range(users)], "length": lengths}),
        items=pa.table({"id": [f"item {i}" for i in range(items)]}),
        split=SplitSpec(),
    )


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[[int], PreparedData]:
    return lambda seed: write_tiny(tmp_path / f"tiny-{seed}", seed=seed, items=30 - seed)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def tiny_config() -> Callable[..., RunConfig]:
    return lambda *overrides: resolve_config("hstu-small", [*TINY, *overrides])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the tiny runs; tests/evaluation looks at them."""
    for name in ("draw_curves", "draw_ranking"):
        monkeypatch.setattr(f"longview.evaluation.card.{name}", lambda *_: False)
