"""The result card of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from longview.data.dataset import PreparedData
from longview.evaluation import evaluate
from longview.evaluation.baselines import evaluate_baselines
from longview.evaluation.card import write_card

from .conftest import Vectors

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def result(random_data: PreparedData) -> dict[str, Any]:
    model = Vectors(random_data.num_items)
    others = evaluate_baselines(random_data, "test")
    return {
        "name": "hstu-small",
        "seed": 7,
        "selected_by": "validation ndcg@10",
        "best_epoch": 2,
        "epochs": 3,
        "stopped": "patience",
        "seconds": 90.0,
        "validation": evaluate(model, random_data, "validation", name="hstu-small").to_dict(),
        "test": evaluate(model, random_data, "test", name="hstu-small").to_dict(),
        "baselines": [report.to_dict() for report in others.reports],
        "skipped": others.skipped,
        "history": [
            {"epoch": 1, "loss": 3.0, "ndcg@10": 0.1},
            {"epoch": 2, "loss": 2.0, "ndcg@10": 0.2},
            {"epoch": 3, "loss": 1.5},
        ],
        "data": {"name": "small", "num_items": 40, "path": "data/small", "simulated": True},
        "config": {"model": {"layers": 2}},
        "environment": {"torch": "2.13.0", "processor": "a fast one"},
        "notes": ["one note"],
    }


def test_the_card_says_everything_a_reader_needs(result: dict[str, Any], tmp_path: Path) -> None:
    write_card(tmp_path, result)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    test = result["test"]
    low, high = test["intervals"]["hr@10"]
    assert f"**HR@10 {test['metrics']['hr@10']:.4f} ({low:.4f}–{high:.4f}), NDCG@10" in card
    assert "Weights of epoch 2 of 3 (no better epoch came), selected by validation ndcg@10, in 90 s." in card
    for name in ("**hstu-small**", "popularity", "item-knn", "ease"):
        assert f"| {name} |" in card
    assert "popularity-7d was skipped: small has no time column" in card
    assert f"Fingerprint `{test['fingerprint']}`" in card
    assert "Leave-last-out: the last event" in card
    assert "Simulated data" in card
    assert "layers: 2" in card
    for fact in ("- seed: 7", "- torch: 2.13.0", "- processor: a fast one", "- note: one note"):
        assert fact in card
    assert "![Loss, metrics and groups](curves.png)" in card
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_the_result_is_written_as_given(result: dict[str, Any], tmp_path: Path) -> None:
    write_card(tmp_path, result)
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == result


def test_models_stand_in_order_of_ndcg(result: dict[str, Any], tmp_path: Path) -> None:
    write_card(tmp_path, result)
    table = (tmp_path / "card.md").read_text(encoding="utf-8").split("## Beside the baselines")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    figures = [float(row.split("|")[3].split("(")[0]) for row in rows]
    assert figures == sorted(figures, reverse=True)
    assert len(figures) == 4


def test_a_baseline_that_wins_is_said_up_front(result: dict[str, Any], tmp_path: Path) -> None:
    result["baselines"][0]["metrics"]["ndcg@10"] = 0.999
    write_card(tmp_path, result)
    head = (tmp_path / "card.md").read_text(encoding="utf-8").split("##")[0]
    assert "**The baseline popularity is better than this model.**" in head


def test_without_matplotlib_the_card_says_so(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    write_card(tmp_path, result)
    assert "matplotlib is not installed" in (tmp_path / "card.md").read_text(encoding="utf-8")
    assert not (tmp_path / "curves.png").exists()


def test_the_least_there_can_be_is_still_a_card(result: dict[str, Any], tmp_path: Path) -> None:
    test = {**result["test"], "intervals": {}, "groups": []}
    write_card(tmp_path, {"name": "plain", "test": test})
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert card.startswith("# plain on small")
    assert "By length of history" not in card
