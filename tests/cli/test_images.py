"""The whole way on images from the command line: prepare, train, resume, evaluate, embed, find similar ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

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


def test_evaluate_also_reranks(longview: Longview, run: Path) -> None:
    plain = json.loads(longview("evaluate", run, "--no-baselines", "--json").stdout)["reports"]
    own, reranked = json.loads(longview("evaluate", run, "--no-baselines", "--rerank", "--json").stdout)["reports"]
    assert [own] == plain
    assert reranked["name"] == f"{own['name']}, re-ranked"
    assert "k-reciprocal re-ranking" in reranked["protocol"]
    assert reranked["metrics"].keys() == own["metrics"].keys()
    assert "re-ranking" not in own["protocol"]
    shown = longview("evaluate", run, "--no-baselines", "--rerank").stdout
    assert "re-ranked" in shown


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


def test_embed_names_the_first_images_that_it_skips(longview: Longview, run: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data.parent / "source" / "class01", tmp_path / "some")
    for number in range(7):
        (folder / f"broken{number}.png").write_bytes(b"damaged")
    arguments = ("embed", run, folder, "--out", tmp_path / "vectors.parquet", "--workers", 0, "--skip-bad")
    done = longview(*arguments)
    assert done.exit_code == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "skipped" in line]
    assert line.startswith("skipped: broken0.png (not an image")
    assert "broken4.png" in line
    assert "broken5.png" not in line
    assert line.endswith("… (7 in all)")
    assert len(json.loads(longview(*arguments, "--json").stdout)["skipped"]) == 7


def test_config_shows_the_preset(longview: Longview) -> None:
    assert "image-small" in longview("config").stdout.split()
    assert "classes_per_batch: 16" in longview("config", "image-small").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "sampler.classes_per_batch=99", "--set", "memory=null"), "classes_per_batch=99, but there are"),
        (
            ("--config", "hstu-small"),
            "'hstu-small' is a preset for logs, and the data are images: choose one of image-",
        ),
        (("--config", "hstu-smal"), "no preset 'hstu-smal' for images"),
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


def test_a_preset_for_images_and_data_that_are_none(longview: Longview, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"{user},{item},{item}\n" for user in "abc" for item in range(4)))
    assert longview("prepare", log, "--out", tmp_path / "log").exit_code == 0
    for data, message in ((tmp_path / "log", "'image-tiny' is a preset for images"), (tmp_path, "not a prepared data")):
        done = longview("train", data, "--out", tmp_path / "run", "--config", "image-tiny")
        assert done.exit_code == 2
        assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_table_of_images_read_as_a_log_is_said(longview: Longview, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,label\na.png,x\nb.png,y\n")
    done = longview("prepare", table, "--out", tmp_path / "data")
    assert done.exit_code == 2
    assert "a table of images needs --images" in done.stderr


def test_commands_of_logs_say_that_the_run_is_on_images(longview: Longview, run: Path) -> None:
    done = longview("similar", run, "--item", "1")
    assert done.exit_code == 2
    assert "a run on images, not on logs" in done.stderr


def test_similar_by_image_finds_others_of_the_gallery(
    longview: Longview, run: Path, data: Path, tmp_path: Path
) -> None:
    source = data.parent / "source"
    image = source / "class03" / "2.png"
    for gallery in ((), ("--gallery", source)):
        done = longview("similar", run, image, *gallery, "--top", 4, "--workers", 0, "--json")
        assert done.exit_code == 0, done.stderr
        rows = json.loads(done.stdout)
        assert [row["rank"] for row in rows] == [1, 2, 3, 4]
        assert all(row["path"] != "class03/2.png" for row in rows)
        assert all(one["similarity"] >= other["similarity"] for one, other in pairwise(rows))
        assert ("label" in rows[0]) == (not gallery)  # a set knows its classes, a folder only paths
    inside = json.loads(longview("similar", run, "class03/2.png", "-k", 4, "--workers", 0, "--json").stdout)
    assert [row["path"] for row in inside] == [row["path"] for row in rows]
    done = longview("embed", run, source, "--out", tmp_path / "vectors.parquet", "--workers", 0)
    done = longview("similar", run, image, "--gallery", tmp_path / "vectors.parquet", "-k", 5, "--json")
    assert [row["path"] for row in json.loads(done.stdout)] == ["class03/2.png", *(row["path"] for row in rows)]


def test_similar_says_how_to_look_elsewhere_where_the_images_have_moved(
    longview: Longview, run: Path, data: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    values = json.loads((moved / "data.json").read_text())
    (moved / "data.json").write_text(json.dumps(values | {"path": str(tmp_path / "gone")}))
    done = longview("similar", moved, "class03/2.png", "--workers", 0)
    assert done.exit_code == 2
    assert "say where to look: --gallery" in done.stderr
    assert longview("similar", moved, "class03/2.png", "--gallery", data, "--workers", 0).exit_code == 0


def test_similar_by_image_draws_a_picture(longview: Longview, run: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'longview[plots]'")
    outside = tmp_path / "photo.png"
    outside.write_bytes((data.parent / "source" / "class05" / "0.png").read_bytes())
    picture = tmp_path / "near.png"
    done = longview("similar", run, outside, "class01/0.png", "-k", 3, "--picture", picture, "--workers", 0)
    assert done.exit_code == 0, done.stderr
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert done.stdout.splitlines()[0].split() == ["query", "rank", "path", "label", "similarity"]
    assert len(done.stdout.splitlines()) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either images"),
        (("a.png", "--item", "1"), "give either images"),
        (("--item", "1", "--picture", "x.png"), "--picture are of runs on images"),
        (("nowhere.png",), "nowhere.png: no such file, and"),
        (("nowhere.png",), "its paths are like "),
        (("{folder}",), "give one image, and the folder as --gallery"),
        (("{broken}",), "broken.png cannot be read: truncated or damaged"),
        (("{text}",), "text.png cannot be read: not an image that can be read"),
        (("class01/0.png", "-k", "0"), "0 neighbours: at least 1"),
        (("class01/0.png", "--picture", "x.jpg"), "a name ending in .png expected"),
        (("class01/0.png", "--gallery", "{folder}"), "no image that can be read"),
        (("class01/0.png", "--gallery", "{text}"), "neither a folder of images nor a zip archive"),
        (("{good}", "--gallery", "none.parquet"), "longview embed"),
        (("{good}", "--gallery", "{other}"), "vectors of 3 dimensions"),
        (("{good}", "--gallery", "{damaged}"), "a damaged one"),
        (("{good}", "--gallery", "{foreign}"), "columns path and vector expected"),
        (("{good}", "--gallery", "{vectors}", "--picture", "x.png"), "holds vectors and no images"),
    ],
)
def test_what_similar_cannot_do_is_one_line(
    longview: Longview, run: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    good = data.parent / "source" / "class02" / "1.png"
    files = {
        name: tmp_path / file
        for name, file in (
            ("folder", "empty"), ("broken", "broken.png"), ("text", "text.png"), ("other", "other.parquet"),
            ("damaged", "damaged.parquet"), ("foreign", "foreign.parquet"), ("vectors", "vectors.parquet"),
        )
    }  # fmt: skip
    files["folder"].mkdir()
    files["broken"].write_bytes(good.read_bytes()[:80])
    files["text"].write_text("not a picture at all")
    vectors = lambda width: pa.FixedSizeListArray.from_arrays(pa.array(np.ones(width, np.float32)), width)
    for name, width in (("other", 3), ("vectors", 8)):
        pq.write_table(pa.table({"path": ["a.png"], "vector": vectors(width)}), files[name])
    files["damaged"].write_bytes(files["vectors"].read_bytes()[:60])
    pq.write_table(pa.table({"path": ["a.png"]}), files["foreign"])
    given = [argument.format(good=good, **files) for argument in arguments]
    done = longview("similar", run, *given, *(() if "--item" in given else ("--workers", 0)))
    assert done.exit_code == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export_writes_a_program_with_the_vectors_of_embed(
    longview: Longview, run: Path, data: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"{name} is not installed: pip install 'longview[export]'")
    out = tmp_path / f"encoder{suffix}"
    done = longview("export", run, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["difference"] < 1e-4
    source = data.parent / "source" / "class04"
    longview("embed", run, source, "--out", tmp_path / "vectors.parquet", "--workers", 0)
    expected = np.stack(pq.read_table(tmp_path / "vectors.parquet")["vector"].to_numpy())
    image = pytest.importorskip("PIL.Image")
    images = np.stack([np.asarray(image.open(file)) for file in sorted(source.iterdir())])[:, None]
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = session.run(["embeddings"], {"images": images})[0]
    else:
        found = torch.export.load(out).module()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert longview("export", run, "--out", tmp_path / "encoder.bin").exit_code == 2


def test_images_of_a_run_on_logs_are_refused(longview: Longview, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"schema_version": 1, "task": "next-item"}')
    done = longview("similar", tmp_path / "run", "photo.png")
    assert done.exit_code == 2
    assert "not on images" in done.stderr


def test_options_of_logs_are_refused(longview: Longview, run: Path) -> None:
    done = longview("evaluate", run, "--tables", "int8")
    assert done.exit_code == 2
    assert "--tables is of runs on logs" in done.stderr
