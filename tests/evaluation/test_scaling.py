"""Slopes, exponents and point ratios, each by its own name, found again where they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longview.errors import InputError
from longview.evaluation.ablation import ablation_summary
from longview.evaluation.scaling import scaling_summary
from longview.evaluation.study_plots import draw_study
from longview.evaluation.study_quality import pack, resampled_means, unpack, user_values

USERS = 4_000


def record(quality: float, compute: float, seed: int) -> dict[str, Any]:
    """A run whose HR@10 is `quality`: so many users at rank 1, the others beyond 10."""
    ranks = np.where(np.arange(USERS) < round(quality * USERS), 1.0, np.inf)
    np.random.default_rng(0).shuffle(ranks)
    costs = {"step": compute, "training": compute, "request": compute / 10}
    return {
        "seed": seed, "ranks": pack(ranks), "metrics": {"hr@10": quality}, "parameters": 10,
        "flops": costs, "seconds": {name: value / 1e9 for name, value in costs.items()},
    }  # fmt: skip


def points(slopes: dict[str, float], seeds: int = 2) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Arms whose quality rises by their slope for ten times the compute; the second arm needs a tenth of it."""
    found = []
    for place, (arm, slope) in enumerate(slopes.items()):
        for step, length in enumerate((1024, 4096, 16384)):
            for depth in (1, 2):
                power = 6 + step / 2 + np.log10(depth)
                quality = 0.2 + slope * (power - 6)
                labels = {"arm": arm, "length": length, "depth": depth}
                found += [(labels, record(quality, 10 ** (power - place), seed)) for seed in range(seeds)]
    return found


def test_slopes_are_points_of_quality_for_ten_times_the_compute() -> None:
    result = scaling_summary("hr@10", points({"HSTU": 0.05, "ULTRA": 0.15}), None, ("HSTU", "ULTRA"))
    fits = result["fits"]
    assert fits["HSTU"]["training_flops"]["all"]["slope"] == pytest.approx(0.05, abs=1e-3)
    assert fits["ULTRA"]["request_seconds"]["all"]["slope"] == pytest.approx(0.15, abs=1e-3)
    assert fits["ULTRA"]["training_flops"]["by_depth"]["2"]["points"] == 3
    ratio = result["ratios"]["slope_ratio"]["training_flops"]
    assert ratio["ratio"] == pytest.approx(3, rel=0.02)
    low, high = ratio["interval"]
    assert low < 3 < high
    assert ratio["first_above_zero"] == 1


def test_ratios_are_there_by_depth_too_and_what_is_kept_at_the_longest() -> None:
    result = scaling_summary("hr@10", points({"HSTU": 0.05, "ULTRA": 0.1}), None, ("HSTU", "ULTRA"))
    by_depth = result["ratios"]["slope_ratio_by_depth"]
    assert set(by_depth) == {"1", "2"}
    assert by_depth["2"]["training_flops"]["ratio"] == pytest.approx(2, rel=0.02)
    kept = result["ratios"]["kept_at_longest"]
    assert kept["length"] == 16384
    assert kept["share"] == pytest.approx((0.3 + 0.1 * 0.15) / (0.25 + 0.05 * 0.15), rel=0.01)
    assert kept["interval"][0] < kept["share"] < kept["interval"][1]
    longer = {row["depth"]: row for row in result["longer_histories"]["ULTRA"]}
    assert set(longer) == {1, 2, None}
    assert longer[None]["difference"] == pytest.approx(0.1, abs=1e-3)


def test_point_ratios_are_compute_at_one_length_and_depth() -> None:
    result = scaling_summary("hr@10", points({"HSTU": 0.05, "ULTRA": 0.15}), None, ("HSTU", "ULTRA"))
    found = result["ratios"]["point_ratios"]
    assert len(found) == 6
    assert all(one["training_flops"] == pytest.approx(10) for one in found)
    first = next(one for one in found if (one["length"], one["depth"]) == (1024, 1))
    assert first["quality_share"] == pytest.approx(1)
    assert first["quality_share_interval"] == pytest.approx([1, 1])  # the same users are right


def test_the_exponent_is_of_the_distance_to_the_best_possible() -> None:
    known = []
    for step, length in enumerate((1024, 4096, 16384)):
        quality = 0.8 - 0.4 * 10 ** (-0.3 * step)
        known.append(({"arm": "one", "length": length, "depth": 1}, record(quality, 10.0 ** (6 + step), 0)))
    best = pack(np.full(USERS, 0.8))
    oracle = {"names": ["all"], "component": pack(np.zeros(USERS)), "windows": {"all": {"hr@10": best}}}
    result = scaling_summary("hr@10", known, oracle, None)
    assert result["fits"]["one"]["training_flops"]["all"]["exponent"] == pytest.approx(0.3, abs=0.01)
    assert result["best_possible"] == {"all": pytest.approx(0.8)}
    assert result["points"][0]["components"]["all"]["targets"] == USERS
    assert "oracle" in result["method"]
    assert "best being 1" in scaling_summary("hr@10", known, None, None)["method"]


def test_a_ratio_by_a_slope_that_may_be_nothing_has_no_ends() -> None:
    result = scaling_summary("hr@10", points({"HSTU": 0.0, "ULTRA": 0.1}), None, ("HSTU", "ULTRA"))
    ratio = result["ratios"]["slope_ratio"]["training_flops"]
    assert ratio["interval"] == [None, None]
    assert ratio["first_above_zero"] < 0.99


def test_long_histories_pay_or_not() -> None:
    result = scaling_summary("hr@10", points({"HSTU": 0.0, "ULTRA": 0.1}), None, None)
    assert result["ratios"] is None
    flat, steep = (result["longer_histories"][arm][0] for arm in ("HSTU", "ULTRA"))
    assert flat["difference"] == pytest.approx(0)
    assert (steep["from"], steep["to"]) == (1024, 16384)
    assert steep["difference"] == pytest.approx(0.1, abs=1e-3)
    assert steep["interval"][0] > 0


def test_resamples_hold_users_together_and_vary_with_users_and_seeds() -> None:
    values = [np.array([[1.0, 0.0] * 50]), np.array([[0.0, 1.0] * 50]), np.array([[1.0, 0.0] * 50, [0.5] * 100])]
    means = resampled_means(values, resamples=400)
    assert means.shape == (3, 400)
    np.testing.assert_allclose(means[0] + means[1], 1)  # the same users are drawn for both
    assert means[0].std() == pytest.approx(0.05, rel=0.15)  # √(p (1 − p) / n)
    assert (means[2] == 0.5).mean() > 0.2  # both draws of a seed were the second, whose users are alike
    np.testing.assert_array_equal(means, resampled_means(values, resamples=400))


def test_ranks_survive_being_packed() -> None:
    ranks = np.array([1, 2.5, 100_000, np.inf])
    np.testing.assert_array_equal(unpack(pack(ranks)), ranks)
    np.testing.assert_allclose(user_values("ndcg@10", ranks), [1, 1 / np.log2(3.5), 0, 0])


@pytest.mark.parametrize("metric", ["ne", "hr@x", "hr@0", "coverage@10"])
def test_metrics_that_ranks_do_not_give_are_refused(metric: str) -> None:
    with pytest.raises(InputError, match="hr@K or ndcg@K"):
        user_values(metric, np.array([1.0]))


def test_users_that_differ_are_refused() -> None:
    known = points({"HSTU": 0.1})
    known.append(({"arm": "other", "length": 1, "depth": 1}, {**record(0.1, 1e6, 0), "ranks": "1 2 3"}))
    with pytest.raises(InputError, match="different test users"):
        scaling_summary("hr@10", known, None, None)


def finished(kind: str, summary: dict[str, Any]) -> dict[str, Any]:
    data = {"name": "world", "simulated": True, "users": USERS}
    study = {"study": kind, "metric": "hr@10", "complete": False, "missing_cells": 2, "data": data}
    return {**study, "measured_on": ["a GPU"], **summary}


def test_pictures_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    known = points({"HSTU": 0.0, "ULTRA": 0.1})[:9]
    scaling = finished("scaling", scaling_summary("hr@10", known, None, ("HSTU", "ULTRA")))
    assert draw_study(tmp_path / "scaling.png", scaling)
    rows = [("reference", "reference"), ("mask", "recent"), ("mask", "full"), ("norm", "row")]
    base = record(0.2, 1e6, 0)
    values = [base, record(0.3, 1e6, 0), record(0.1, 1e7, 0), base]
    known = [({"part": p, "variant": v}, r) for (p, v), r in zip(rows, values, strict=True)]
    summary = ablation_summary("hr@10", known, None)
    assert [row["is_reference"] for row in summary["rows"]] == [True, False, False, True]
    assert summary["rows"][2]["relative"]["flops"]["training"] == pytest.approx(10)
    assert summary["rows"][1]["difference_interval"][0] > 0
    assert draw_study(tmp_path / "ablation.png", finished("ablation", summary))
    untimed = [(labels, {**record, "seconds": None}) for labels, record in points({"HSTU": 0.1, "ULTRA": 0.1})]
    summary = scaling_summary("hr@10", untimed, None, ("HSTU", "ULTRA"))
    assert summary["points"][0]["seconds"] is None
    assert summary["ratios"]["slope_ratio"]["training_seconds"] is None
    assert summary["ratios"]["point_ratios"][0]["training_seconds"] is None
    assert draw_study(tmp_path / "untimed.png", {**finished("scaling", summary), "measured_on": []})
    for name in ("scaling", "ablation", "untimed"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
