"""The baselines beside a model, on made and on real data."""

from __future__ import annotations

from typing import Any

import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.baselines import evaluate_baselines
from longview.evaluation.environment import environment


def test_every_baseline_runs_or_says_why_not(random_data: PreparedData) -> None:
    started: list[str] = []
    results = evaluate_baselines(random_data, "test", started=started.append)
    assert [report.name for report in results.reports] == ["popularity", "item-knn", "ease"]
    assert set(results.fit_seconds) == {"popularity", "item-knn", "ease"}
    assert "no time column" in results.skipped["popularity-7d"]
    assert started == ["popularity", "popularity-7d", "item-knn", "ease"]
    assert len({(r.fingerprint, r.protocol) for r in results.reports}) == 1


def test_a_wrong_name_fails_before_any_work(random_data: PreparedData) -> None:
    started: list[str] = []
    with pytest.raises(InputError, match=r"no baseline 'item_knn' .did you mean 'item-knn'"):
        evaluate_baselines(random_data, "test", names=["popularity", "item_knn"], started=started.append)
    assert not started


def test_an_empty_split_is_an_error_not_a_skip(make_data: Any) -> None:
    with pytest.raises(InputError, match="no user to evaluate"):
        evaluate_baselines(make_data([[0], [1]], num_items=2), "test", names=["popularity"])


def test_the_environment_names_versions_and_hardware() -> None:
    found = environment()
    assert found["torch"].startswith("2.")
    assert found["longview"]
    assert found["processor"]
    assert found["threads"] >= 1
