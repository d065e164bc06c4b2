"""The whole way on images from the command line: prepare, train, resume, evaluate, embed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.image_classes import SETTINGS, write_classes

Longview = Callable[..., Any]


@pytest.fixture(scope="module")
def data(longview: Longview, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    done = longview("prepare", write_classes(folder / "source"), "--out", folder / "data")
    assert done.exit_code == 0, done.stderr
    return folder / "data"


@pytest.fixture(scope="module")
def run(longview: Longview, data: Path) -> Path:
    out = data.parent / "run"
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    done = longview("train", data, "--out", out, *settings)
    assert done.exit_code == 0, done.stderr
    assert "recall@1" in done.stdout
    assert "epoch 2 validation: recall@1" in done.stderr
    return out


def test_evaluate_gives_the_figures_of_training(longview: Longview, run: Path) -> None:
    document = json.loads(longview("evaluate", run, "--json").stdout)
    result = json.loads((run / "result.json").read_text())
    assert document["reports"][0] == result["test"]
    assert document["reports"][1]["name"] == "pixels"
    validation = json.loads(longview("evaluate", run, "--split", "validation", "--json").stdout)
    assert validation["reports"] == [result["validation"]]


def test_resume_takes_the_configuration_of_the_run(longview: Longview, run: Path, data: Path) -> None:
    done = longview("train", data, "--out", run, "--resume", "--set", "loop.epochs=3", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3


def test_embed_writes_a_row_an_image(longview: Longview, run: Path, data: Path, tmp_path: Path) -> None:
    done = longview("embed", run, data.parent / "source", "--out", tmp_path / "vectors.parquet", "--workers", 0)
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table.column_names == ["path", "vector"]
    assert table.num_rows == 72


def test_config_shows_the_preset(longview: Longview) -> None:
    assert "image-small" in longview("config").stdout.split()
    assert "classes_per_batch: 16" in longview("config", "image-small").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "sampler.classes_per_batch=30", "--set", "memory=null"), "classes_per_batch=30, but there are"),
        (("--config", "hstu-small"), "no preset 'hstu-small' for images"),
        (("--set", "loss.knd=triplet"), "did you mean 'kind'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    longview: Longview, data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = longview("train", data, "--out", tmp_path / "run", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_of_logs_say_that_the_run_is_on_images(longview: Longview, run: Path) -> None:
    done = longview("similar", run, "--item", "1")
    assert done.exit_code == 2
    assert "a run on images, not on logs" in done.stderr


def test_options_of_logs_are_refused(longview: Longview, run: Path) -> None:
    done = longview("evaluate", run, "--tables", "int8")
    assert done.exit_code == 2
    assert "--tables is of runs on logs" in done.stderr
