"""The training benchmark reports what it says it does; no test looks at the time itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longview.bench.train import SETTINGS, bench_train, synthetic_log
from longview.errors import InputError
from longview.training.config import resolve_config
from tests.bench.written import read_written


def test_the_default_settings_are_those_of_the_quoted_figure() -> None:
    config = resolve_config("hstu-small", SETTINGS)
    assert (config.model.width, config.model.layers, config.model.max_length) == (64, 2, 200)
    assert (config.loss.kind, config.loss.num_negatives, config.batches.batch_size) == ("sampled", 256, 128)


def test_the_synthetic_log_has_the_shape_of_movielens_1m(tmp_path: Path) -> None:
    data = synthetic_log(tmp_path / "log")
    assert (data.num_users, data.num_items) == (6_040, 3_416)
    assert data.num_events == pytest.approx(999_611, rel=0.05)
    trained = np.minimum(data.split.train_end - 1 - data.offsets[:-1], 200).sum()
    assert trained == pytest.approx(647_430, rel=0.05), "positions an epoch trains on, histories cut to 200"
    assert data.meta.simulated


def test_a_measurement_has_its_settings_and_spread(tmp_path: Path) -> None:
    synthetic_log(tmp_path / "log", users=40, items=300, median_length=20)
    result = bench_train(
        tmp_path / "log", tmp_path / "train.json", overrides=["model.width=8", "loss.kind=sampled"], epochs=3
    )
    assert read_written(tmp_path / "train.json") == result
    assert len(result["epochs"]) == 3
    assert result["spread"][0] <= result["seconds_per_epoch"] <= result["spread"][1]
    assert result["config"]["model"]["width"] == 8
    assert result["environment"]["device"] == "cpu"
    assert len(result["recommend_all_seconds"]) == 5


def test_no_epoch_is_no_measurement() -> None:
    with pytest.raises(InputError, match="at least 1"):
        bench_train(epochs=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is available")
def test_a_device_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="device cuda is not available here"):
        bench_train(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_timed_with_graphs_and_without(tmp_path: Path) -> None:
    synthetic_log(tmp_path / "log", users=400, items=300, median_length=20)
    settings = ["model.width=16", "batches.batch_size=16", "loop.precision=bf16"]
    result = bench_train(tmp_path / "log", overrides=settings, epochs=1, device="cuda")
    without = result["launch_by_launch"]
    assert result["graphs"] > 0
    assert without["graphs"] == 0
    for one in (result, without):
        assert one["peak_memory_bytes"] > 0
        assert 0 <= one["idle"] <= 1
        assert one["epochs"][0]["events"] == result["epochs"][0]["events"]
    assert without["epochs"][0]["loss"] == pytest.approx(result["epochs"][0]["loss"], rel=0.05)
