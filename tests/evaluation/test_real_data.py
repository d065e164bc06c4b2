"""The baselines on real data: their figures are pinned, so that no change of ranks goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from longview.data.dataset import PreparedData
from longview.data.prepare import prepare
from longview.evaluation.baselines import evaluate_baselines

Split = Literal["leave-last-out", "global-time"]
Open = Callable[[str, Split], PreparedData]

ML_1M, BEAUTY = "ml-1m/sequences.csv.gz", "amazon-beauty/interactions.csv"
FINGERPRINTS = {
    (ML_1M, "leave-last-out"): "565da6528352045d",
    (BEAUTY, "global-time"): "66b75bc8016d263b",
    (BEAUTY, "leave-last-out"): "878b54ca9fdf2732",
}


@pytest.fixture(scope="module")
def open_data(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Open:
    made: dict[Any, PreparedData] = {}

    def get(name: str, split: Split) -> PreparedData:
        if (name, split) not in made:
            out = tmp_path_factory.mktemp("real") / "data"
            made[name, split] = prepare(real_data(name), out=out, split=split)
        return made[name, split]

    return get


def assert_figures(data: PreparedData, name: str, hr: float, ndcg: float) -> None:
    (report,) = evaluate_baselines(data, "test", names=[name], resamples=0).reports
    assert report.metrics["hr@10"] == pytest.approx(hr, abs=0.002)
    assert report.metrics["ndcg@10"] == pytest.approx(ndcg, abs=0.002)


@pytest.mark.parametrize(("name", "split"), FINGERPRINTS)
def test_the_data_is_the_data_of_the_figures(open_data: Open, name: str, split: Split) -> None:
    assert open_data(name, split).fingerprint == FINGERPRINTS[name, split]


@pytest.mark.parametrize(("name", "hr", "ndcg"), [("popularity", 0.0369, 0.0180), ("item-knn", 0.0858, 0.0429)])
def test_movielens(open_data: Open, name: str, hr: float, ndcg: float) -> None:
    assert_figures(open_data(ML_1M, "leave-last-out"), name, hr, ndcg)


@pytest.mark.slow
def test_movielens_ease(open_data: Open) -> None:
    assert_figures(open_data(ML_1M, "leave-last-out"), "ease", 0.1083, 0.0532)


@pytest.mark.parametrize(
    ("name", "hr", "ndcg"),
    [("popularity", 0.0072, 0.0033), ("popularity-7d", 0.0025, 0.0010), ("item-knn", 0.0349, 0.0192)],
)
def test_beauty_by_time(open_data: Open, name: str, hr: float, ndcg: float) -> None:
    assert_figures(open_data(BEAUTY, "global-time"), name, hr, ndcg)


def test_the_share_of_cold_targets_by_time(open_data: Open) -> None:
    (report,) = evaluate_baselines(open_data(BEAUTY, "global-time"), "test", names=["popularity"]).reports
    assert report.num_users == 6110
    assert report.cold_share == pytest.approx(1361 / 6110)
