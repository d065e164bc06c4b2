"""train, evaluate, simulate, config, doctor, bench and demo."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import longview as lv
from longview.training import InterruptedRunError, resolve_config
from tests.cli.conftest import Longview, TrainedRun
from tests.trained_run import SETTINGS


def options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_training_writes_a_card_and_says_where(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = longview("train", trained.data, "--out", out, *options(SETTINGS), "--no-baselines")
    assert result.exit_code == 0
    assert f"{out}/card.md" in result.stdout
    assert (out / "card.md").is_file()
    assert "ndcg@10" in result.stdout
    assert "epoch 2 validation" in result.stderr


def test_the_same_training_gives_the_same_model(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    result = longview("train", trained.data, "--out", tmp_path / "run", *options(SETTINGS), "--no-baselines", "--json")
    assert json.loads(result.stdout)["test"]["metrics"] == lv.load(trained.run).evaluate().metrics


def test_resuming_needs_no_config_again(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    longview("train", trained.data, "--out", out, *options([*SETTINGS, "loop.epochs=1"]), "--no-baselines")
    result = longview("train", trained.data, "--out", out, "--resume", "--set", "loop.epochs=2", "--no-baselines")
    assert result.exit_code == 0
    assert lv.load(out).evaluate().metrics == lv.load(trained.run).evaluate().metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "hstu-smal"], "did you mean 'hstu-small'?"),
        (["--set", "model.layer_count=3"], "unknown key 'model.layer_count'"),
        (["--set", "model.layers"], "expected key=value"),
        (["--resume"], "not a run directory"),
        (["--device", "cuda:9"], "cuda"),
    ],
)
def test_bad_settings_leave_nothing_behind(
    longview: Longview, trained: TrainedRun, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = longview("train", trained.data, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_shows_the_model_beside_the_baselines(longview: Longview, trained: TrainedRun) -> None:
    result = longview("evaluate", trained.run, "--split", "validation", "--json")
    document = json.loads(result.stdout)
    reports = {report["name"]: report for report in document["reports"]}
    assert set(reports) | set(document["skipped"]) == {
        "hstu-small", "popularity", "popularity-7d", "item-knn", "ease"
    }  # fmt: skip
    assert reports["hstu-small"]["metrics"] == lv.load(trained.run).evaluate("validation").metrics
    assert {report["split"] for report in document["reports"]} == {"validation"}


def test_evaluate_says_the_protocol_in_words(longview: Longview, trained: TrainedRun) -> None:
    result = longview("evaluate", trained.run, "--no-baselines")
    text = " ".join(result.stdout.split())
    assert "the last event of a user is the test target" in text
    assert lv.load(trained.run).data.fingerprint in text
    assert longview("evaluate", trained.run, "--split", "tset").exit_code == 2


def test_simulate_writes_what_it_says_and_never_over_something(longview: Longview, tmp_path: Path) -> None:
    arguments = ["simulate", "--out", tmp_path / "shop", "--users", 30, "--items", 40, "--max-history", 20]
    result = longview(*arguments, "--seed", 3)
    assert "nothing of it is real" in result.stdout
    log = lv.simulate(users=30, items=40, max_history=20, seed=3)
    assert pq.read_table(tmp_path / "shop" / "events.parquet").equals(log.events)
    assert longview(*arguments).exit_code == 2
    assert longview(*arguments, "--overwrite").exit_code == 0


def test_config_prints_what_train_takes(longview: Longview, tmp_path: Path) -> None:
    assert "hstu-small" in longview("config").stdout.split()
    text = longview("config", "hstu-small", "--set", "model.layers=3").stdout
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert resolve_config(str(file)) == resolve_config("hstu-small", ["model.layers=3"])
    assert json.loads(longview("config", "hstu-small", "--set", "model.layers=3", "--json").stdout) == yaml.safe_load(
        json.dumps(resolve_config("hstu-small", ["model.layers=3"]).model_dump(mode="json"))
    )


def test_doctor_says_what_runs_and_why_the_rest_does_not(longview: Longview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # as the tests of the kernels set it
    found = json.loads(longview("doctor", "--json").stdout)
    attention = found["kernels"]["attention on cpu"]
    assert attention["chosen"] == "cpu"
    assert attention["triton"].startswith("off: ")
    assert {"longview", "torch", "python"} <= set(found["versions"])
    assert all(text.startswith(("installed: ", "absent: pip install")) for text in found["extras"].values())
    assert "attention on cpu" in longview("doctor").stdout


def test_bench_recommend_writes_its_json(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    file = tmp_path / "figure.json"
    assert longview("bench", "recommend", "--run", trained.run, "--repeats", 2, "--json", file).exit_code == 0
    figure = json.loads(file.read_text())
    assert figure["data"]["users"] == 120
    assert figure["seconds"] > 0
    assert len(figure["all_seconds"]) == 2
    assert longview("bench", "recommend", "--run", trained.run, "--repeats", 0).exit_code == 2


def test_the_demo_goes_the_whole_way_twice(longview: Longview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.cli.demo.SHOP", {"users": 120, "items": 80, "max_history": 40})
    monkeypatch.setattr("longview.cli.demo.SETTINGS", tuple(SETTINGS))
    for _ in range(2):
        result = longview("demo", "--out", tmp_path / "demo")
        assert result.exit_code == 0
        assert "SIMULATED" in result.stdout
        assert all(name in result.stdout for name in ("hstu-small", "ease", "longview recommend", "longview similar"))
    assert lv.load(tmp_path / "demo" / "run").data.meta.simulated


def test_the_demo_replaces_nothing_but_a_demo(longview: Longview, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.csv").write_text("precious")
    result = longview("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not an earlier demo" in result.stderr
    assert (tmp_path / "data" / "mine.csv").read_text() == "precious"


def test_an_interrupted_demo_says_that_it_begins_again(
    longview: Longview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("go on with --resume")  # which the demo does not have

    monkeypatch.setattr("longview.cli.demo.SHOP", {"users": 120, "items": 80, "max_history": 40})
    monkeypatch.setattr("longview.training.train", interrupted)
    result = longview("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 130
    assert result.stderr == "stopped; `longview demo` begins again, and replaces what it left\n"


def test_an_interrupted_training_says_where_the_checkpoint_is(
    longview: Longview, trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise InterruptedRunError("the checkpoint is in there")

    monkeypatch.setattr("longview.training.train", interrupted)
    result = longview("train", trained.data, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr == "the checkpoint is in there\n"


def test_reranking_is_of_images(longview: Longview, trained: TrainedRun) -> None:
    done = longview("evaluate", trained.run, "--rerank")
    assert done.exit_code == 2
    assert "--rerank is of runs on images" in done.stderr


def test_evaluate_with_seen_items_kept_in(longview: Longview, trained: TrainedRun) -> None:
    shown = {
        option: json.loads(longview("evaluate", trained.run, "--json", *option).stdout)["reports"]
        for option in ((), ("--exclude-seen",), ("--include-seen",))
    }
    assert shown[()][0]["metrics"] == shown["--exclude-seen",][0]["metrics"]
    assert all(not report["exclude_seen"] for report in shown["--include-seen",])  # the baselines too
    assert "history kept in" in shown["--include-seen",][0]["protocol"]
    assert shown["--include-seen",][0]["metrics"]["hr@10"] < shown[()][0]["metrics"]["hr@10"]


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.02), ("int4", 0.2)])
def test_evaluate_says_what_a_quantised_item_table_moves(
    longview: Longview, trained: TrainedRun, name: str, limit: float
) -> None:
    document = json.loads(longview("evaluate", trained.run, "--no-baselines", "--tables", name, "--json").stdout)
    full, quantised = document["reports"]
    assert quantised["name"] == f"{full['name']}, {name} items"
    found = document["quantised"]
    moved = found["drift"]["ndcg@10"]
    assert moved["full"] == full["metrics"]["ndcg@10"]
    assert moved["difference"] == pytest.approx(quantised["metrics"]["ndcg@10"] - moved["full"])
    assert abs(moved["relative"]) <= limit
    assert found["full_bytes"] == 80 * 16 * 4
    shown = longview("evaluate", trained.run, "--no-baselines", "--tables", name)
    assert f"{name} item table, " in shown.stdout
    assert "ndcg@10 " in shown.stdout.splitlines()[-1]


def test_evaluate_says_what_8_bit_products_move(longview: Longview, trained: TrainedRun) -> None:
    options = ("evaluate", trained.run, "--no-baselines", "--precision", "fp8")
    document = json.loads(longview(*options, "--tables", "int8", "--json").stdout)
    assert document["command"].startswith("longview")
    full, tables, products = document["reports"]
    assert products["name"] == f"{full['name']}, fp8 products"
    assert tables["name"] == f"{full['name']}, int8 items"
    moved = document["fp8"]["drift"]["ndcg@10"]
    assert moved["difference"] == pytest.approx(products["metrics"]["ndcg@10"] - full["metrics"]["ndcg@10"])
    assert abs(moved["relative"]) <= 0.1
    assert document["quantised"]["drift"].keys() == document["fp8"]["drift"].keys()
    shown = longview(*options).stdout.splitlines()
    assert shown[-1].startswith("fp8 products in ")
    assert "ndcg@10 " in shown[-1]


def test_a_precision_that_no_product_has_is_refused(longview: Longview, trained: TrainedRun) -> None:
    result = longview("evaluate", trained.run, "--precision", "fp4")
    assert result.exit_code == 2
    assert "precision 'fp4'" in result.stderr


def test_tables_of_other_widths_are_refused(longview: Longview, trained: TrainedRun) -> None:
    result = longview("evaluate", trained.run, "--tables", "int3")
    assert result.exit_code == 2
    assert "tables 'int3', did you mean 'int" in result.stderr or "choose int8 or int4" in result.stderr
