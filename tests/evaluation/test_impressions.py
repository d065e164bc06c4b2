"""Metrics of impressions by task, their intervals over users, and what makes two results comparable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longview.data.dataset import PreparedData
from longview.data.labels import TaskConfig, resolve_tasks
from longview.errors import InputError
from longview.evaluation.impression_report import (
    ImpressionReport,
    compare_impressions,
    lower_is_better,
    report_impressions,
    shown_metrics,
)
from longview.evaluation.impressions import (
    Impressions,
    RankingProtocol,
    bootstrap_users,
    measure,
    one_class_users,
    reliabilities,
    split_impressions,
)
from longview.evaluation.metrics import auc, gauc, log_loss, normalised_entropy
from tests.ranking_log import write_ranking

CONFIGS = (
    TaskConfig(name="like", action="like"),
    TaskConfig(name="buy", action="buy"),
    TaskConfig(name="stars", strength="rating"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("impressions") / "shop")


@pytest.fixture(scope="module")
def protocol(shop: PreparedData) -> RankingProtocol:
    return RankingProtocol(resolve_tasks(CONFIGS, shop), 3)


@pytest.fixture(scope="module")
def shown(shop: PreparedData, protocol: RankingProtocol) -> Impressions:
    return split_impressions(shop, "test", protocol)


@pytest.fixture(scope="module")
def guess(shown: Impressions) -> np.ndarray:
    """Better than nothing, worse than knowing."""
    generator = np.random.default_rng(0)
    noise = generator.random((len(shown), 3))
    labels = np.nan_to_num(shown.labels.astype(float), nan=2.5)
    return np.concatenate([0.25 + 0.5 * (0.5 * labels[:, :2] + 0.5 * noise[:, :2]), labels[:, 2:] + noise[:, 2:]], 1)


def test_each_task_is_measured_where_its_label_is_known(shown: Impressions, guess: np.ndarray) -> None:
    found = measure(shown, guess)
    like, stars = shown.labels[:, 0].astype(float), shown.labels[:, 2].astype(float)
    known = ~np.isnan(stars)
    assert 0 < known.sum() < len(known)
    assert found["like.auc"] == pytest.approx(auc(like, guess[:, 0]))
    assert found["like.gauc"] == pytest.approx(gauc(like, guess[:, 0], shown.users))
    assert found["like.ne"] == pytest.approx(normalised_entropy(like, guess[:, 0]))
    assert found["like.logloss"] == pytest.approx(log_loss(like, guess[:, 0]))
    assert found["stars.mae"] == pytest.approx(np.abs(guess[known, 2] - stars[known]).mean())
    assert found["ne"] == pytest.approx((found["like.ne"] + found["buy.ne"]) / 2)


def test_one_class_only_is_left_out_of_the_means(shown: Impressions, guess: np.ndarray) -> None:
    labels = shown.labels.copy()
    labels[:, 1] = 0
    candidates = type(shown.candidates)(shown.candidates.request, shown.candidates.items, labels)
    found = measure(Impressions(shown.requests, candidates, shown.tasks), guess)
    assert "buy.ne" not in found
    assert "buy.auc" not in found
    assert found["ne"] == found["like.ne"]
    assert "buy.logloss" in found


def test_users_that_gauc_leaves_out_are_counted(shown: Impressions) -> None:
    like = shown.labels[:, 0]
    single = [u for u in np.unique(shown.users) if len(set(like[shown.users == u].tolist())) == 1]
    expected = {"users": len(single), "impressions": int(np.isin(shown.users, single).sum())}
    assert one_class_users(shown)["like"] == expected


def test_intervals_are_those_of_drawing_users_again(shown: Impressions, guess: np.ndarray) -> None:
    """Against a loop that copies the impressions of every user drawn."""
    names = np.unique(shown.users)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=60)
    found = bootstrap_users(shown, guess, resamples=60)
    for name, function in (("like.auc", auc), ("like.ne", normalised_entropy)):
        values = []
        for counts in drawn:
            rows = np.repeat(np.arange(len(shown)), counts[np.searchsorted(names, shown.users)])
            values.append(function(shown.labels[rows, 0].astype(float), guess[rows, 0]))
        assert found[name] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert found["stars.mae"][0] < measure(shown, guess)["stars.mae"] < found["stars.mae"][1]
    assert found["gauc"][0] <= measure(shown, guess)["gauc"] <= found["gauc"][1]


def test_reliability_is_of_binary_tasks(shown: Impressions, guess: np.ndarray) -> None:
    tables = reliabilities(shown, guess)
    assert list(tables) == ["like", "buy"]
    assert sum(b.size for b in tables["like"]) == len(shown)


def test_sampled_candidates_are_the_same_for_everybody(shop: PreparedData, protocol: RankingProtocol) -> None:
    sampled = RankingProtocol(protocol.tasks, 3, sampled=2)
    one, other = (split_impressions(shop, "test", sampled) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != split_impressions(shop, "test", protocol).fingerprint


def test_the_fingerprint_covers_labels_which_that_of_the_data_does_not(
    shop: PreparedData, protocol: RankingProtocol, tmp_path: Path
) -> None:
    def relabel(events: dict[str, np.ndarray]) -> None:
        events["action"] ^= 1

    other = write_ranking(tmp_path / "other", change=relabel)
    assert other.fingerprint == shop.fingerprint
    assert (
        split_impressions(other, "test", protocol).fingerprint != split_impressions(shop, "test", protocol).fingerprint
    )


@pytest.fixture(scope="module")
def report(shop: PreparedData, protocol: RankingProtocol, shown: Impressions, guess: np.ndarray) -> ImpressionReport:
    return report_impressions(shown, guess, shop, "test", protocol, name="guess", seconds=1.0, resamples=20)


class TestReport:
    def test_it_survives_json(self, report: ImpressionReport) -> None:
        assert ImpressionReport.from_dict(report.to_dict()) == report

    def test_it_says_how_it_came_about(self, report: ImpressionReport) -> None:
        assert "every event of the test period" in report.protocol
        assert "up to 3 consecutive events" in report.protocol
        assert "strictly before" in report.protocol
        assert report.tasks[0]["kind"] == "binary"

    def test_the_lowest_entropy_comes_first(
        self, report: ImpressionReport, shop: PreparedData, protocol: RankingProtocol, shown: Impressions
    ) -> None:
        flat = report_impressions(
            shown, shown.constant([0.5, 0.5, 3]), shop, "test", protocol, name="flat", seconds=0, resamples=0
        )
        assert [row["name"] for row in compare_impressions([flat, report])] == ["guess", "flat"]

    def test_different_impressions_are_not_compared(self, report: ImpressionReport) -> None:
        other = ImpressionReport.from_dict({**report.to_dict(), "impressions": "0" * 16, "name": "other"})
        with pytest.raises(InputError, match="not comparable"):
            compare_impressions([report, other])

    def test_means_are_shown_where_there_are_several_tasks(self, report: ImpressionReport) -> None:
        assert {"ne", "auc", "gauc"} <= set(shown_metrics([report.metrics]))
        one = {name: value for name, value in report.metrics.items() if not name.startswith("buy")}
        assert "ne" not in shown_metrics([one])


def test_which_way_is_better() -> None:
    lower = [name for name in ("ne", "a.b.ne", "like.auc", "gauc", "rating.mae", "hr@10") if lower_is_better(name)]
    assert lower == ["ne", "a.b.ne", "rating.mae"]
