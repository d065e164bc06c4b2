"""Mean and deviation over seeds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.study import baseline_studies, summarise
from longview.evaluation.tables import REQUIRED


def run(seed: int, hr: float, **changes: Any) -> dict[str, Any]:
    report = {
        "data": "ml",
        "split": "test",
        "protocol": "leave-last-out: the last",
        "fingerprint": "f0",
        "exclude_seen": True,
    }
    return {
        "name": "hstu",
        "seed": seed,
        "epochs": 7,
        "best_epoch": 5,
        "seconds": 60.0,
        "config": {"model": {"layers": 2}, "loop": {"seed": seed, "epochs": 9}},
        "test": {**report, "metrics": {"hr@10": hr, "ndcg@10": hr / 2}},
        "validation": {**report, "metrics": {"hr@10": hr + 0.01}},
        "environment": {"torch": "2.13"},
    } | changes


def test_three_seeds() -> None:
    study = summarise([run(0, 0.30), run(1, 0.32), run(2, 0.34)], command="make it")
    assert study["mean"] == pytest.approx({"hr@10": 0.32, "ndcg@10": 0.16})
    assert study["std"] == pytest.approx({"hr@10": 0.02, "ndcg@10": 0.01}), "of n - 1"
    assert (study["name"], study["dataset"], study["split"], study["fingerprint"]) == (
        "hstu",
        "ml",
        "leave-last-out",
        "f0",
    )
    assert study["config"] == {"model": {"layers": 2}, "loop": {"epochs": 9}}, "the seed is not part of it"
    assert [entry["seed"] for entry in study["seeds"]] == [0, 1, 2]
    assert study["seeds"][1]["validation_metrics"] == {"hr@10": 0.33}
    assert study["command"] == "make it"
    assert json.loads(json.dumps(study)) == study


def test_one_seed_has_no_deviation() -> None:
    assert summarise([run(0, 0.3)], command="c")["std"]["hr@10"] == 0


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs"),
        ([run(0, 0.3), run(0, 0.4)], "repeat a seed"),
        ([run(0, 0.3), run(1, 0.4, config={"model": {"layers": 4}})], "seeds 0 and 1 differ in their configuration"),
        ([run(0, 0.3), run(1, 0.4, test={**run(1, 0.4)["test"], "fingerprint": "f1"})], "differ in their data"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarise(runs, command="c")


def test_baselines_have_the_same_format(random_data: PreparedData) -> None:
    studies = baseline_studies(random_data, command="c", names=["popularity", "popularity-7d", "item-knn"])
    assert [study["name"] for study in studies] == ["popularity", "item-knn"]
    for study in studies:
        assert set(REQUIRED) <= set(study)
        assert study["mean"] == study["seeds"][0]["metrics"]
        assert study["baseline"]
    assert json.loads(json.dumps(studies)) == studies
