"""Ranking from the command line: prepare a log of ratings, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longview.cli.app import app

SETTINGS = [
    "model.width=8",
    "model.layers=1",
    "ranking.tasks=[{name: like, strength: rating, at_least: 4}, {name: rating, strength: rating}]",
    "model.embedding.context=[age]",
    "loop.epochs=1",
]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-ranking")
    generator = np.random.default_rng(0)
    lines = [
        f"{user},{generator.integers(30)},{generator.integers(1, 6)},{1_600_000_000 + 3600 * step + 60 * user}"
        for user in range(30)
        for step in range(12)
    ]
    (folder / "log.csv").write_text("user_id,item_id,rating,timestamp\n" + "\n".join(lines) + "\n")
    (folder / "users.csv").write_text(
        "user_id,age\n" + "\n".join(f"{user},{20 + user % 5}" for user in range(30)) + "\n"
    )
    run("prepare", str(folder / "log.csv"), "--users", str(folder / "users.csv"), "--out", str(folder / "data"))
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    shown = run("train", str(folder / "data"), "--config", "ranking-small", "--out", str(folder / "run"), *settings)
    assert "item + user bias" in shown
    assert "like NE" in shown
    assert f"longview evaluate {folder / 'run'}" in shown
    return folder / "run"


def test_evaluate_shows_the_model_beside_the_baselines_with_intervals(trained: Path) -> None:
    shown = run("evaluate", str(trained), "--split", "validation")
    for words in ("global rate", "rating MAE", "like GAUC", "95 % intervals of ranking-small: like NE"):
        assert words in shown


def test_evaluate_as_json(trained: Path) -> None:
    document = json.loads(run("evaluate", str(trained), "--json"))
    names = [report["name"] for report in document["reports"]]
    assert names == ["ranking-small", "global rate", "item rate", "user rate", "item + user bias"]
    assert document["reports"][0]["reliability"]["like"]


def test_recommend_says_what_the_model_is_for(trained: Path) -> None:
    result = CliRunner().invoke(app, ["recommend", str(trained), "--user", "3"])
    assert result.exit_code == 2
    assert "trained to rank candidates" in result.output


def test_without_actions_a_strength_is_compared_with_its_median(trained: Path, tmp_path: Path) -> None:
    words = ("--config", "ranking-small", "--set", "model.width=8", "--set", "model.layers=1", "--set", "loop.epochs=1")
    shown = run("train", str(trained.parent / "data"), "--out", str(tmp_path / "run"), *words, "--json")
    tasks = json.loads(shown)["test"]["tasks"]
    assert [(task["name"], task["kind"]) for task in tasks] == [("rating>=3", "binary"), ("rating", "regression")]
