"""A study of metric learning: its cells, every one once, stopped and gone on with, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.data.images import ImageSet, prepare_images
from longview.errors import InputError, LongviewError
from longview.training.studies import metric_workers
from longview.training.studies.grid import LATER, identity
from longview.training.studies.image_cell import image_cell
from longview.training.studies.metric_config import NO_PART, MetricStudyConfig, load_metric_study
from longview.training.studies.metric_run import MetricRecords, metric_study_summary, run_metric_cells
from tests.image_classes import SETTINGS, write_classes

BASE = {key: yaml.safe_load(value) for key, value in (one.split("=") for one in SETTINGS) if not key.startswith("loop")}
STUDY: dict[str, Any] = {
    "kind": "metric-learning",
    "settings": {
        key: value for key, value in BASE.items() if key not in ("memory.capacity", "data.validation_classes")
    },
    "steps": 12,
    "seeds": [0, 1],
    "policies": {"none": {"memory": None}, "xbm": {"memory.drift": {"kind": "none"}}, "axbn": {}},
    "batches": [6],
    "memories": [0.1, 0.5],
}
CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("classes")
    return prepare_images(write_classes(folder / "source"), out=folder / "data", workers=0, test_classes=0.34)


def study_of(images: ImageSet, **changes: Any) -> MetricStudyConfig:
    return MetricStudyConfig.model_validate({"name": "small", "data": images.path, **STUDY, **changes})


@pytest.fixture(scope="session")
def ran(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[MetricStudyConfig, Path]:
    """A study with measured times, run once."""
    study, out = study_of(images, timed_steps=1), tmp_path_factory.mktemp("study")
    done = run_metric_cells(study, out)
    assert (done.done, done.cells, done.stopped) == (10, 10, None)
    return study, out


def test_cells_come_seed_by_seed_and_a_policy_without_memory_once(images: ImageSet) -> None:
    cells = study_of(images).cells(len(images.train))
    assert [cell.seed for cell in cells] == [0] * 5 + [1] * 5
    assert [(cell.labels["policy"], cell.labels["memory"]) for cell in cells[:5]] == [
        ("none", None), ("xbm", 0.1), ("xbm", 0.5), ("axbn", 0.1), ("axbn", 0.5)
    ]  # fmt: skip
    assert cells[0].config.memory is None
    capacities = [cell.config.memory.capacity for cell in cells[1:3] if cell.config.memory is not None]
    assert capacities == [6, 24]  # of 48 images; not less than a batch
    assert len({cell.key("data") for cell in cells}) == 10
    assert cells[0].config.sampler.classes_per_batch == 3
    assert cells[0].config.data.validation_classes == 0


def test_changes_of_images_that_came_later_leave_the_keys_of_earlier_cells(images: ImageSet) -> None:
    plain, same, warped = (
        study_of(images, settings={**STUDY["settings"], **more}).cells(48)[0]
        for more in ({}, {"data.augment.warp": 0.0, "data.augment.scale": [1.0, 1.0]}, {"data.augment.warp": 0.1})
    )
    assert not set(LATER["data.augment"]) & set(identity(plain.config, NO_PART)["data"]["augment"])
    assert plain.key("data") == same.key("data") != warped.key("data")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("study-omniglot*.yaml")), ids=lambda file: str(file.stem))
def test_the_studies_that_ship_are_whole(file: Path) -> None:
    cells = load_metric_study(file).cells(19_280)
    assert {cell.seed for cell in cells} == {0, 1, 2, 3, 4}
    assert all(cell.config.memory is None or cell.config.evaluation.drift_every for cell in cells)


def test_settings_of_a_policy_win_over_those_of_a_regime(images: ImageSet) -> None:
    regimes = {"usual": {}, "fast": {"optimiser.rate": 0.04, "memory.age_limit": 3}}
    policies = {"xbm": {"memory.drift": {"kind": "none"}, "memory.age_limit": 7}}
    cells = study_of(images, regimes=regimes, policies=policies, memories=[0.5]).cells(48)
    assert [cell.config.optimiser.rate for cell in cells[:2]] == [0.01, 0.04]
    assert [cell.config.memory.age_limit for cell in cells[:2] if cell.config.memory is not None] == [7, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "xbx"}, "reference 'xbx' is none of the policies"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"memories": [0]}, "shares above 0"),
        ({"polices": {}}, "did you mean 'policies'"),
    ],
)
def test_studies_that_lack_something_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"data": "x", **STUDY, **changes}))
    with pytest.raises(InputError, match=message):
        load_metric_study(file)


def test_bad_cells_are_named(images: ImageSet) -> None:
    with pytest.raises(InputError, match="batch of 7 images does not divide"):
        study_of(images, batches=[7]).cells(48)
    with pytest.raises(InputError, match=r"small.*axbn.*drfit"):
        study_of(images, policies={"xbm": {}, "axbn": {"memory.drfit": 1}}).cells(48)


def test_a_cell_has_quality_time_and_drift(ran: tuple[MetricStudyConfig, Path]) -> None:
    study, out = ran
    records = MetricRecords(out / "cells.json")
    assert records.data is not None
    assert (records.data["training_images"], records.data["unseen_classes"]) == (48, 4)
    for cell in study.cells(48):
        record = records.cells[cell.key(records.data["fingerprint"])]
        assert 0 < record["metrics"]["recall@1"] <= 1
        assert record["seconds"]["step"] > 0
        assert bool(record["memory_bytes"]) is (cell.config.memory is not None)
        if cell.config.memory is not None:
            assert [look["step"] for look in record["drift"]] == [3, 6, 9]
            assert record["drift"][0]["by_age"][0]["age"] == 1
    assert len(records.times) == 5
    assert all(time["seconds"] > 0 and not time["captured"] for time in records.times.values())


def test_a_study_goes_on_where_it_stopped(
    ran: tuple[MetricStudyConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = ran
    values = json.loads((out / "cells.json").read_text())
    gone, before = values["cells"].popitem()
    (tmp_path / "cells.json").write_text(json.dumps(values))
    seeds = []

    def counted(config: Any, steps: int, source: Any) -> Any:
        seeds.append(config.loop.seed)
        return image_cell(config, steps, source)

    monkeypatch.setattr(metric_workers, "image_cell", counted)
    assert run_metric_cells(study, tmp_path, max_minutes=0).stopped == "max_minutes"
    assert not seeds
    assert run_metric_cells(study, tmp_path).done == 10
    assert seeds == [1]
    assert MetricRecords(tmp_path / "cells.json").cells[gone]["metrics"] == before["metrics"]  # bit for bit on a CPU


def test_several_processes_do_what_one_does(
    ran: tuple[MetricStudyConfig, Path], images: ImageSet, tmp_path: Path
) -> None:
    study, out = ran
    fewer = study.model_copy(update={"seeds": (0,), "memories": (0.5,)})
    assert run_metric_cells(fewer, tmp_path, parallel=2).stopped is None
    one, other = MetricRecords(out / "cells.json"), MetricRecords(tmp_path / "cells.json")
    assert len(other.cells) == len(other.times) == 3
    assert all(one.cells[key]["metrics"] == record["metrics"] for key, record in other.cells.items())


def test_a_cell_that_fails_is_named_and_the_others_are_kept(images: ImageSet, tmp_path: Path) -> None:
    study = study_of(images, seeds=[0], policies={"xbm": {}, "wild": {"optimiser.rate": 1e30}}, memories=[0.5])
    told: list[str] = []
    with pytest.raises(LongviewError, match=r"1 cells failed.*wild"):
        run_metric_cells(study, tmp_path, note=told.append)
    assert len(MetricRecords(tmp_path / "cells.json").cells) == 1
    assert any(line.startswith("failed:") for line in told)


def test_the_summary_compares_every_policy_with_the_reference(ran: tuple[MetricStudyConfig, Path]) -> None:
    study, out = ran
    result = metric_study_summary(study, out, command="longview study")
    assert result["complete"]
    assert [(row["policy"], row["memory"]) for row in result["rows"]] == [
        ("none", None), ("xbm", 0.1), ("xbm", 0.5), ("axbn", 0.1), ("axbn", 0.5)
    ]  # fmt: skip
    assert all(row["step_seconds"] > 0 for row in result["rows"])
    assert result["verdicts"].keys() == {"none", "axbn"}
    assert result["verdicts_to_none"].keys() == {"xbm", "axbn"}
    json.dumps(result)


def test_cells_of_other_images_are_refused(ran: tuple[MetricStudyConfig, Path], tmp_path: Path) -> None:
    study, out = ran
    other = prepare_images(write_classes(tmp_path / "source", each=5), out=tmp_path / "data", workers=0)
    with pytest.raises(InputError, match="give the study another directory"):
        run_metric_cells(study, out, data=other.path)
