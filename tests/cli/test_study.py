"""`longview study`: seeds in, one summary out; finished seeds are not trained again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from longview.cli.app import app
from longview.data.images import prepare_images
from tests.image_classes import SETTINGS as IMAGE_SETTINGS
from tests.image_classes import write_classes
from tests.trained_run import SETTINGS, TrainedRun

SMALL = [word for setting in SETTINGS for word in ("--set", setting)]


def study(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["study", *map(str, words)])
    return result.exit_code, result.output


def test_two_seeds_make_one_summary_and_are_not_repeated(trained: TrainedRun, tmp_path: Path) -> None:
    words = ["hstu-small", trained.data, "--seeds", "3,4", "--out", tmp_path / "runs", "--json", tmp_path / "s.json"]
    assert study(*words, *SMALL)[0] == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert [entry["seed"] for entry in summary["seeds"]] == [3, 4]
    mean = sum(entry["metrics"]["hr@10"] for entry in summary["seeds"]) / 2
    assert summary["mean"]["hr@10"] == pytest.approx(mean)
    weights = tmp_path / "runs" / "seed-3" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert study(*words, *SMALL)[0] == 0
    assert weights.stat().st_mtime_ns == written


def test_the_drift_of_smaller_tables_is_said_and_written(trained: TrainedRun, tmp_path: Path) -> None:
    words = ["hstu-small", trained.data, "--seeds", "3", "--out", tmp_path / "runs", "--json", tmp_path / "s.json"]
    code, output = study(*words, *SMALL, "--tables", "int8,int4")
    assert code == 0
    assert "int4 tables, hr@10: " in output
    assert [one["tables"] for one in json.loads((tmp_path / "s.json").read_text())["quantised"]] == ["int8", "int4"]


def test_baselines_have_no_seed(trained: TrainedRun, tmp_path: Path) -> None:
    code, output = study("baselines", trained.data, "--json", tmp_path / "b.json")
    assert code == 0
    studies = json.loads((tmp_path / "b.json").read_text())
    assert {one["name"] for one in studies} >= {"popularity", "item-knn", "ease"}
    assert "popularity: hr@10" in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "1,x", "--out", "runs"], "separated by commas"),
        (["--seeds", "1,1", "--out", "runs"], "each seed once"),
        ([], "needs --out"),
    ],
)
def test_bad_input(trained: TrainedRun, tmp_path: Path, words: list[str], expected: str) -> None:
    code, output = study("hstu-small", trained.data, "--json", tmp_path / "s.json", *words)
    assert code == 2
    assert expected in output
    assert not (tmp_path / "s.json").exists()


def grid_file(folder: Path, **changes: object) -> Path:
    values = {
        "kind": "ablation",
        "data": {"path": "nowhere"},
        "settings": dict(setting.split("=") for setting in SETTINGS) | {"loop.epochs": 1},
        "seeds": [0],
        "parts": {"norm": {"row": {}, "head": {"model.layer.norm": "head"}}},
    }
    settings = {key: yaml.safe_load(str(value)) for key, value in values["settings"].items()}  # type: ignore[attr-defined]
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(values | {"settings": settings} | changes, sort_keys=False))
    return file


def test_an_ablation_on_prepared_data_writes_a_result_and_a_picture(trained: TrainedRun, tmp_path: Path) -> None:
    words = ["ablation", trained.data, "--grid", grid_file(tmp_path), "--out", tmp_path / "out"]
    words += ["--json", tmp_path / "a.json"]
    code, output = study(*words, "--max-minutes", "0.01")
    assert code == 0
    assert "stopped (max_minutes) with 0 of 2 cells; the same command goes on" in output
    assert not (tmp_path / "a.json").exists()
    code, output = study(*words)
    assert code == 0
    assert "norm, head: ndcg@10" in output
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["complete"], len(result["rows"])) == (True, 3)
    assert result["data"]["exclude_seen"]
    written = (tmp_path / "out" / "cells.json").stat().st_mtime_ns
    code, output = study(*words, "--draw", "--seeds", "0,1")
    assert code == 0
    assert json.loads((tmp_path / "a.json").read_text())["missing_cells"] == 2
    assert (tmp_path / "out" / "cells.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hstu-small"], "needs DATA"),
        (["ablation", "DATA", "--tables", "int4", "--out", "x"], "--tables is for one configuration"),
        (["hstu-small", "DATA", "--draw", "--out", "x"], "--draw is for `longview study ablation`"),
        (["ablation"], "needs --out"),
        (["scaling", "--out", "x", "--grid", "GRID"], "run `longview study ablation` with it"),
        (["ablation", "--out", "x", "--grid", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["ablation", "--out", "x", "--grid", "GRID"], "nowhere"),
    ],
)
def test_bad_grids(trained: TrainedRun, tmp_path: Path, words: list[str], expected: str) -> None:
    real = {"DATA": str(trained.data), "GRID": str(grid_file(tmp_path)), "x": str(tmp_path / "out")}
    code, output = study(*[real.get(word, word) for word in words], "--json", tmp_path / "s.json")
    assert code == 2
    assert expected in " ".join(output.split())


def test_a_study_of_metric_learning_writes_a_result_and_pictures(tmp_path: Path) -> None:
    images = prepare_images(write_classes(tmp_path / "source"), out=tmp_path / "data", workers=0, test_classes=0.34)
    given = (one.split("=") for one in IMAGE_SETTINGS if not one.startswith(("loop", "memory", "data.valid")))
    values = {
        "kind": "metric-learning",
        "data": "nowhere",
        "settings": {key: yaml.safe_load(value) for key, value in given},
        "steps": 8,
        "seeds": [0],
        "policies": {"xbm": {"memory.drift": {"kind": "none"}}, "axbn": {}},
        "batches": [6],
    }
    grid = tmp_path / "letters.yaml"
    grid.write_text(yaml.safe_dump(values))
    words: list[str | Path] = ["metric-learning", images.path, "--grid", grid, "--json", tmp_path / "s.json"]
    assert study(*words)[0] == 2  # needs --out
    code, output = study(*words, "--out", tmp_path / "out", "--seeds", "0,1")
    assert code == 0
    assert "axbn against xbm, recall@1:" in output
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["complete"], result["seeds"], len(result["rows"])) == (True, [0, 1], 2)
    assert (tmp_path / "s.png").exists()
    assert (tmp_path / "s-drift.png").exists()
