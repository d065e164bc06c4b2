"""The Python surface."""

from __future__ import annotations

from pathlib import Path

import pytest

import longview as lv
from longview.training import resolve_config
from tests.trained_run import SETTINGS, TrainedRun, trained

__all__ = ["trained"]


def test_four_lines_from_a_log_to_recommendations(trained: TrainedRun, tmp_path: Path) -> None:
    data = lv.prepare(trained.log / "events.parquet", items=trained.log / "items.csv", out=tmp_path / "data")
    model = lv.fit(data, config="hstu-small", overrides=SETTINGS, out=tmp_path / "run", progress=False)
    table = model.recommend(users=["u0001"], k=3)
    assert table.column_names == ["user", "item", "score", "rank", "title"]
    assert table.equals(lv.load(tmp_path / "run").recommend(users=["u0001"], k=3))


def test_a_config_object_takes_overrides_too(trained: TrainedRun, tmp_path: Path) -> None:
    config = resolve_config("hstu-small", SETTINGS)
    model = lv.fit(trained.data, config=config, overrides=["loop.epochs=1"], out=tmp_path / "run", progress=False)
    assert model.run is not None
    assert model.run.config.loop.epochs == 1
    assert model.run.config.model == config.model


def test_a_run_works_where_its_data_set_is_gone(trained: TrainedRun, tmp_path: Path) -> None:
    moved = trained.data.rename(trained.data.with_name("moved"))
    try:
        model = lv.load(trained.run)
        assert model.recommend(sequences=[["p0001"]], k=3).num_rows == 3
        with pytest.raises(lv.InputError, match="data"):
            model.recommend(users=["u0001"])
        assert lv.load(trained.run, data=moved).recommend(users=["u0001"], k=3).num_rows == 3
    finally:
        moved.rename(trained.data)


def test_another_data_set_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    other = lv.prepare(trained.log / "events.parquet", out=tmp_path / "other", split="global-time")
    with pytest.raises(lv.InputError, match="fingerprint"):
        lv.load(trained.run, data=other.path).evaluate()


def test_errors_can_be_caught_by_name() -> None:
    with pytest.raises(lv.InputError):
        lv.load("nowhere")
    assert issubclass(lv.InputError, lv.LongviewError)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'recommend'"):
        lv.recommend  # noqa: B018
    assert set(dir(lv)) >= {"prepare", "fit", "load", "simulate"}
