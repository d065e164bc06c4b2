"""Every preset that ships trains, on a tiny log with actions, and loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.data.dataset import PreparedData
from longview.data.prepare import prepare
from longview.data.simulator import SimulationConfig, simulate, write_simulation
from longview.training import preset_names, resolve_config, train
from longview.training.rundir import load_model

TINY = ["model.width=8", "model.heads=2", "loop.epochs=1", "batches.batch_size=null", "batches.token_budget=4096"]
CUT = {"ultra-truncated": ["model.truncation.length=8"], "ultra-two-stage": ["model.truncation.length=8"]}
FAMILY = sorted(name for name in preset_names() if name.startswith("ultra"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("presets")
    shop = simulate(SimulationConfig(users=40, items=50, max_history=30, seed=7))
    files = write_simulation(shop, folder / "log")
    return prepare(files / "events.parquet", out=folder / "data", split="leave-last-out")


@pytest.mark.parametrize("name", FAMILY)
def test_the_ultra_family_trains_and_loads(name: str, log: PreparedData, tmp_path: Path) -> None:
    train(resolve_config(name, [*TINY, *CUT.get(name, [])]), log, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    actions = torch.tensor([1, 0, 2, 4, 0, 1])
    batch = batch_of_sequences([[1, 2, 3], [4, 5, 6]], actions=actions, timestamps=torch.arange(6) * 60)
    vectors = loaded.model.user_vectors(batch)
    assert vectors.shape == (2, 8)
    assert vectors.isfinite().all()
    assert loaded.result is not None


def test_a_preset_for_other_actions_says_which_the_data_has(log: PreparedData, tmp_path: Path) -> None:
    config = resolve_config("ultra-streams", ["model.streams.engagement.actions=[purchase]"])
    with pytest.raises(ValueError, match=r"no action 'purchase'.*the data has .*like"):
        train(config, log, tmp_path / "run")
