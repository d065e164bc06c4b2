"""A small run, trained once a test session: simulated log, prepared data set, two epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from longview.data.prepare import prepare
from longview.data.simulator import SimulationConfig, simulate, write_simulation
from longview.training import resolve_config, train

SETTINGS = [
    "model.width=16",
    "model.layers=1",
    "model.max_length=20",
    "batches.batch_size=32",
    "optimiser.rate=0.01",
    "loop.epochs=2",
]


@dataclass(frozen=True)
class TrainedRun:
    log: Path
    data: Path
    run: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("trained")
    shop = simulate(SimulationConfig(users=120, items=80, max_history=40, seed=4))
    log = write_simulation(shop, folder / "log")
    data = prepare(log / "events.parquet", items=log / "items.csv", out=folder / "data", split="leave-last-out")
    train(resolve_config("hstu-small", SETTINGS), data, folder / "run")
    return TrainedRun(log, folder / "data", folder / "run")
