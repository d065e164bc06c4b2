"""Reports: one evaluation, and several side by side."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation import Report, compare, evaluate, rank_targets
from longview.evaluation.groups import by_history
from longview.evaluation.ranking import Ranks

from .conftest import Fixed, Vectors


def test_a_report_says_what_was_measured_and_how(random_data: PreparedData) -> None:
    model = Vectors(random_data.num_items)
    report = evaluate(model, random_data, "test", name="mine")
    ranks = rank_targets(model, random_data, random_data.split.test)
    assert report.metrics["hr@10"] == pytest.approx((ranks.rank <= 10).mean())
    assert report.metrics["mrr"] == pytest.approx((1 / ranks.rank).mean())
    assert {"hr@1", "ndcg@100", "mrr@5", "coverage@10", "novelty@10"} <= set(report.metrics)
    low, high = report.intervals["ndcg@10"]
    assert low < report.metrics["ndcg@10"] < high
    assert (report.name, report.split, report.num_users, report.num_items) == ("mine", "test", len(ranks), 40)
    assert report.fingerprint == random_data.fingerprint
    assert report.cold_share == pytest.approx(ranks.cold.mean())
    for words in ("leave-last-out", "test targets", "all 40 items", "left out", "mean rank", "misses"):
        assert words in report.protocol
    assert sum(group["users"] for group in report.groups) == len(ranks)


def test_seen_items_are_excluded_unless_told_otherwise(random_data: PreparedData) -> None:
    model = Vectors(random_data.num_items)
    assert evaluate(model, random_data, "test").exclude_seen
    assert evaluate(model, random_data, "test", exclude_seen=None).exclude_seen
    kept = evaluate(model, random_data, "test", exclude_seen=False)
    assert not kept.exclude_seen
    assert "kept in" in kept.protocol


def test_the_quick_form_has_the_same_accuracy_and_nothing_else(random_data: PreparedData) -> None:
    model = Vectors(random_data.num_items)
    whole, quick = evaluate(model, random_data, "validation"), evaluate(model, random_data, "validation", resamples=0)
    assert quick.metrics == {name: whole.metrics[name] for name in quick.metrics}
    assert "coverage@10" not in quick.metrics
    assert not quick.intervals
    assert not quick.groups


def test_a_catalogue_shorter_than_the_lists_is_fine(make_data: Any) -> None:
    data = make_data([[0, 1, 2], [2, 0, 1], [1, 2, 0]], num_items=3)
    report = evaluate(Fixed([0.0, 1.0, 2.0]), data, "test")
    assert report.metrics["hr@10"] == 1
    assert report.metrics["coverage@3"] == 1


def test_reports_survive_json(random_data: PreparedData) -> None:
    report = evaluate(Vectors(random_data.num_items), random_data, "test")
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_wrong_split_and_wrong_k_are_refused(random_data: PreparedData) -> None:
    with pytest.raises(InputError, match="did you mean 'validation'"):
        evaluate(Vectors(40), random_data, "validate")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        evaluate(Vectors(40), random_data, "test", ks=(0, 10))


def test_compare_puts_the_best_first(random_data: PreparedData) -> None:
    reports = [evaluate(Vectors(40, seed), random_data, "test", name=f"seed {seed}") for seed in range(4)]
    rows = compare(reports)
    assert [row["ndcg@10"] for row in rows] == sorted((r.metrics["ndcg@10"] for r in reports), reverse=True)
    assert {"name", "hr@10", "coverage@10"} <= set(rows[0])


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"split": "validation"}, {"exclude_seen": False}])
def test_compare_refuses_what_is_not_comparable(random_data: PreparedData, change: dict[str, Any]) -> None:
    report = evaluate(Vectors(40), random_data, "test", name="one")
    with pytest.raises(InputError, match="not comparable"):
        compare([report, dataclasses.replace(report, name="two", **change)])


HISTORY = np.array([1, 4, 5, 60, 60, 20_000])
RANK = np.array([1.0, 20.0, 2.0, 1.0, np.inf, 3.0])


def test_groups_are_ranges_of_history_length() -> None:
    groups = by_history(Ranks(np.arange(6), RANK, np.zeros(6, bool), HISTORY), min_users=1)
    assert [(g["from"], g["to"], g["users"], g["hr@10"]) for g in groups] == [
        (1, 4, 2, 0.5),
        (5, 49, 1, 1.0),  # nobody between 10 and 49
        (50, 9_999, 2, 0.5),
        (10_000, None, 1, 1.0),
    ]


@pytest.mark.parametrize("min_users", [2, 3, 4, 7])
def test_small_groups_are_joined_and_nobody_is_lost(min_users: int) -> None:
    groups = by_history(Ranks(np.arange(6), RANK, np.zeros(6, bool), HISTORY), min_users=min_users)
    assert sum(g["users"] for g in groups) == 6
    assert all(g["users"] >= min_users for g in groups) or len(groups) == 1
    assert groups[0]["from"] == 1
    assert groups[-1]["to"] is None
    assert [g["to"] + 1 for g in groups[:-1]] == [g["from"] for g in groups[1:]]


def test_data_whose_items_come_again_by_design_keep_seen_items_in(random_data: PreparedData) -> None:
    again = dataclasses.replace(random_data, meta=random_data.meta.model_copy(update={"repeats": True}))
    model = Vectors(random_data.num_items)
    found = evaluate(model, again, "test")
    assert not found.exclude_seen
    assert found.metrics == evaluate(model, random_data, "test", exclude_seen=False).metrics
    assert evaluate(model, again, "test", exclude_seen=True).exclude_seen
