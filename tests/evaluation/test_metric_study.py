"""What a study of metric learning says: intervals over seeds, verdicts against the reference, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longview.evaluation.metric_study import mean_interval, metric_summary
from longview.evaluation.metric_study_plots import draw_metric_study

DRIFT = [
    {
        "step": 10,
        "memory": {"mean_age": 4.0},
        "share_of_loss_from_memory": 0.5,
        "gain": {"mean": 0.2, "std": 0.1},
        "by_age": [
            {"age": age, **{f"{kind}_{when}": 0.1 * age for kind in ("cosine", "moments", "agreement")
                            for when in ("before", "after")}}
            for age in (1, 3)
        ],
    }
]  # fmt: skip


def cells(policy: str, values: list[float], *, memory: float | None = 0.5, regime: str = "usual") -> list[Any]:
    labels = {"regime": regime, "batch": 64, "memory": memory, "policy": policy}
    return [
        (labels, {"seed": seed, "metrics": {"recall@1": value, "map@r": value / 2}, "memory_bytes": 8, "drift": DRIFT})
        for seed, value in enumerate(values)
    ]


KNOWN = [
    *cells("none", [0.60, 0.61, 0.62], memory=None),
    *cells("xbm", [0.70, 0.71, 0.72]),
    *cells("axbn", [0.80, 0.81, 0.82]),
    *cells("xbn", [0.69, 0.71, 0.74]),
]


def rows_of(known: list[Any], times: list[Any] | None = None) -> dict[str, dict[str, Any]]:
    return {row["policy"]: row for row in metric_summary(known, times or [], reference="xbm")["rows"]}


def test_intervals_are_those_of_student() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0]) or (0, 0)
    assert (low, high) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)  # scipy.stats.t.interval
    assert mean_interval([1.0]) is None


def test_a_policy_is_better_where_the_intervals_do_not_overlap() -> None:
    rows = rows_of(KNOWN)
    recall = rows["axbn"]["metrics"]["recall@1"]
    assert (recall["verdict"], recall["difference"]) == ("better", pytest.approx(0.1))
    assert recall["difference_interval"] == pytest.approx([0.1, 0.1])  # paired: every seed gains the same
    assert rows["none"]["metrics"]["recall@1"]["verdict"] == "worse"
    assert rows["xbn"]["metrics"]["recall@1"]["verdict"] == "even"
    assert rows["xbm"]["metrics"]["recall@1"]["verdict_to_none"] == "better"
    assert "verdict" not in rows["xbm"]["metrics"]["recall@1"]


def test_a_policy_without_a_memory_is_compared_with_the_best_size_of_it() -> None:
    rows = rows_of([*KNOWN, *cells("xbm", [0.5, 0.5, 0.5], memory=0.1)])
    recall = rows["none"]["metrics"]["recall@1"]
    assert (recall["verdict"], recall["against"]) == ("worse", 0.5)


def test_regimes_are_not_compared_with_each_other() -> None:
    rows = rows_of([*cells("xbm", [0.9, 0.9, 0.9], regime="fast"), *cells("axbn", [0.5, 0.5, 0.5])])
    assert "verdict" not in rows["axbn"]["metrics"]["recall@1"]


def test_counts_drift_and_times_are_there() -> None:
    labels, _ = cells("axbn", [0.0])[0]
    result = metric_summary(KNOWN, [(labels, {"seconds": 0.001, "peak_bytes": 7})], reference="xbm")
    assert result["verdicts"]["axbn"]["recall@1"] == {"better": 1, "even": 0, "worse": 0}
    row = next(row for row in result["rows"] if row["policy"] == "axbn")
    assert (row["step_seconds"], row["peak_bytes"], row["memory_bytes"]) == (0.001, 7, 8)
    assert row["drift"][0]["by_age"][1]["cosine_after"] == pytest.approx(0.3)


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    rows = rows_of([*cells("xbm", [0.7]), *cells("axbn", [0.8])])
    assert rows["axbn"]["metrics"]["recall@1"]["verdict"] == "unknown"


def test_pictures_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = {"steps": 20, "seeds": [0, 1, 2], "data": {"name": "letters", "unseen_classes": 4}}
    result |= metric_summary(KNOWN, [], reference="xbm")
    drawn = draw_metric_study(tmp_path / "study.json", result)
    assert [path.name for path in drawn] == ["study.png", "study-drift.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    bare = result | metric_summary(cells("xbm", [0.7]), [], reference="xbm")
    assert [path.name for path in draw_metric_study(tmp_path / "bare.json", bare)] == ["bare-drift.png"]
