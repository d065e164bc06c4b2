"""Running a study: every cell once, kept at once, stopped and gone on with, in one process or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError, LongviewError
from longview.models.flops import Lengths, training_flops
from longview.training import InterruptedRunError
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.studies import Records, StudyConfig, run_cells, summary, workers
from longview.training.studies.cell import run_cell
from longview.training.studies.workers import finish_cell, reason
from tests.training.studies.conftest import ABLATION, SCALING

Make = Callable[..., StudyConfig]


@pytest.fixture(scope="session")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """An ablation on simulated data, run once."""
    study = StudyConfig.model_validate({"name": "small", **ABLATION})
    out = tmp_path_factory.mktemp("ablation") / "out"
    done = run_cells(study, out)
    assert (done.done, done.cells, done.stopped) == (6, 6, None)
    return study, out


def test_every_cell_has_quality_operations_and_time(ablated: tuple[StudyConfig, Path]) -> None:
    study, out = ablated
    records = Records(out / "cells.json")
    assert records.data is not None
    assert not records.data["exclude_seen"]  # items come again in this world
    for cell in study.cells():
        record = records.cells[cell.key(records.data["fingerprint"])]
        assert record["seed"] == cell.seed
        assert 0 <= record["metrics"]["ndcg@10"] <= 1
        assert record["flops"]["request"] > 0
        # 24 histories, cut to their newest 64 events.
        step = training_flops(cell.config.model, [Lengths(64)] * 24, scored=9)
        assert record["flops"]["training"] == step.total
        timed = records.with_seconds(cell.key(records.data["fingerprint"]), cell.time_key(records.data["fingerprint"]))
        assert timed is not None
        assert all(value > 0 for value in timed["seconds"].values())
    assert len(records.times) == 3  # of all seeds of a configuration


def test_a_study_goes_on_where_it_was_killed(
    ablated: tuple[StudyConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = ablated
    values = json.loads((out / "cells.json").read_text())
    (gone, _) = values["cells"].popitem()
    (tmp_path / "cells.json").write_text(json.dumps(values))
    ran: list[int] = []

    def counted(config: Any, data: Any, **options: Any) -> Any:
        ran.append(config.loop.seed)
        return run_cell(config, data, **options)

    monkeypatch.setattr(workers, "run_cell", counted)
    assert run_cells(study, tmp_path, data=out / "lifelong").done == 6
    assert ran == [1]
    assert gone in Records(tmp_path / "cells.json").cells
    before = {k: v["ranks"] for k, v in Records(out / "cells.json").cells.items()}
    assert {k: v["ranks"] for k, v in Records(tmp_path / "cells.json").cells.items()} == before


def test_minutes_over_begin_no_cell(ablated: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    study, out = ablated
    done = run_cells(study, tmp_path, data=out / "lifelong", max_minutes=0.01)
    assert (done.done, done.stopped) == (0, "max_minutes")


def test_a_cell_out_of_time_is_given_up_and_begins_again(ablated: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    study, out = ablated
    cell, data = study.cells()[0], PreparedData.open(out / "lifelong")
    with pytest.raises(InterruptedRunError, match="step 1; this cell begins again"):
        run_cell(cell.config, data, device="cpu", deadline=1.0)
    assert finish_cell(cell, data, "cpu", deadline=1.0) is None
    assert reason(1.0) == "max_minutes"
    assert reason(None) == "interrupted"


def test_a_cell_that_fails_is_named_and_the_others_are_kept(ablated: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    study, out = ablated
    wild = {"rate": {"1": {}, "far too high": {"optimiser.rate": 1e30}}}
    few = study.model_copy(update={"seeds": (0,), "parts": wild})
    with pytest.raises(LongviewError, match=r"1 cells failed: rate: far too high, seed 0: DivergenceError"):
        run_cells(few, tmp_path, data=out / "lifelong")
    assert len(Records(tmp_path / "cells.json").cells) == 1


def test_the_last_weights_need_no_validation(
    ablated: tuple[StudyConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = ablated
    data = PreparedData.open(out / "lifelong")
    config = study.cells()[0].config
    longer = config.model_copy(update={"loop": config.loop.model_copy(update={"epochs": 3, "patience": 1})})
    best = run_cell(longer, data, device="cpu", choose="best")
    monkeypatch.setattr(RetrievalGoal, "validate", None)
    last = run_cell(longer, data, device="cpu", choose="last")
    assert (last["epochs"], last["best_epoch"], last["validation"]) == (3, 3, None)
    assert best["validation"]["ndcg@10"] >= 0
    cells = [study.model_copy(update={"choose": choose}).cells()[0] for choose in ("best", "last")]
    assert cells[0].key("data") != cells[1].key("data")
    assert cells[0].time_key("data") == cells[1].time_key("data")


def test_two_processes_come_to_the_same(ablated: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    study, out = ablated
    half = study.model_copy(update={"seeds": (0,), "parts": {"mask": study.parts["mask"]}})
    told: list[str] = []
    assert run_cells(half, tmp_path, data=out / "lifelong", parallel=2, note=told.append).done == 2
    one, two = Records(out / "cells.json").cells, Records(tmp_path / "cells.json").cells
    assert {key: record["ranks"] for key, record in two.items()} == {key: one[key]["ranks"] for key in two}
    assert told[-1].startswith("times are not measured beside other work")
    result = summary(half, tmp_path, command="")
    assert result["measured_on"] == []
    assert all(row["seconds"] is None and set(row["relative"]) == {"flops"} for row in result["rows"])
    assert run_cells(half, tmp_path, data=out / "lifelong", note=told.append).done == 2
    assert told[-1].endswith("0 left to measure")
    assert len(summary(half, tmp_path, command="")["measured_on"]) == 1


def test_an_ablation_says_what_each_part_is_worth(ablated: tuple[StudyConfig, Path]) -> None:
    result = summary(*ablated, command="make it")
    assert result["complete"]
    assert len(result["measured_on"]) == 1
    rows = {(row["part"], row["variant"]): row for row in result["rows"]}
    assert list(rows)[:3] == [("reference", "reference"), ("mask", "prefix"), ("mask", "full")]
    assert rows["mask", "prefix"]["difference"] == 0
    assert rows["mask", "prefix"]["difference_interval"] == [0, 0]
    assert rows["mask", "full"]["relative"]["flops"]["training"] > 1
    low, high = rows["mask", "full"]["difference_interval"]
    assert low <= rows["mask", "full"]["difference"] <= high
    assert result["best_possible"]["64"] <= result["best_possible"]["all"]
    assert sum(one["targets"] for one in rows["actions", "absent"]["components"].values()) == 24
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_summary_of_what_is_there_says_what_is_missing(ablated: tuple[StudyConfig, Path]) -> None:
    study, out = ablated
    more = study.model_copy(update={"seeds": (0, 1, 2)})
    result = summary(more, out, command="")
    assert (result["complete"], result["missing_cells"]) == (False, 3)


def test_a_scaling_study_has_points_and_ratios(make_study: Make, ablated: Any, tmp_path: Path) -> None:
    study = make_study(SCALING)
    assert run_cells(study, tmp_path, data=ablated[1] / "lifelong").done == 8
    result = summary(study, tmp_path, command="")
    assert len(result["points"]) == 8
    ratios = {(r["length"], r["depth"]): r for r in result["ratios"]["point_ratios"]}
    assert ratios[64, 2]["training_flops"] > ratios[16, 2]["training_flops"] > 1
    assert set(result["ratios"]["slope_ratio"]) == set(result["fits"]["HSTU"])
    json.dumps(result, allow_nan=False)


def test_other_data_are_not_mixed_in(ablated: tuple[StudyConfig, Path], tiny: PreparedData) -> None:
    study, out = ablated
    with pytest.raises(InputError, match=r"cells of lifelong.*the data are tiny.*another directory"):
        run_cells(study, out, data=tiny.path)
    other = study.model_copy(update={"data": study.data.model_copy(update={"lifelong": {"users": 9}})})
    with pytest.raises(InputError, match="simulated by other rules"):
        run_cells(other, out)


def test_nothing_to_draw_is_said(make_study: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cell of the study is there yet"):
        summary(make_study(ABLATION), tmp_path, command="")


def test_damaged_records_are_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    file.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Records(file)
    assert file.read_text() == "{"


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is available")
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_device_that_is_not_there_is_refused_before_any_cell(tmp_path: Path, parallel: int) -> None:
    study = StudyConfig.model_validate({"name": "small", **ABLATION})
    with pytest.raises(InputError, match="device cuda is not available here"):
        run_cells(study, tmp_path / "new", device="cuda", parallel=parallel)
    assert not (tmp_path / "new").exists()
