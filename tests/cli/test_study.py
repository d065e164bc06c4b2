"""`longview study`: seeds in, one summary out; finished seeds are not trained again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longview.cli.app import app
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
