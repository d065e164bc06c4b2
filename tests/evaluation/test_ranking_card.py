"""Card, picture and table of a ranking result: figures beside baselines, and whether probabilities come true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longview.evaluation.card import render_card, write_card
from longview.evaluation.ranking_table import ranking_table
from longview.evaluation.study import summarise
from longview.evaluation.tables import tables


def report(name: str, ne: float, **extra: Any) -> dict[str, Any]:
    return {
        "kind": "ranking",
        "name": name,
        "data": "shop",
        "split": "test",
        "protocol": "global-time: every event of the test period is ranked",
        "fingerprint": "f" * 16,
        "impressions": "a" * 16,
        "num_users": 40,
        "num_items": 12,
        "num_requests": 90,
        "num_candidates": 1234,
        "seconds": 0.1,
        "metrics": {"like.ne": ne, "like.auc": 0.75, "like.gauc": 0.7, "like.ece": 0.02, "stars.mae": 0.8, "ne": ne},
        "tasks": [
            {"name": "like", "action": "like", "strength": None, "at_least": None, "mean": 0.25},
            {"name": "stars", "action": None, "strength": "rating", "at_least": None, "mean": 3.5},
        ],
        "intervals": {"like.ne": [ne - 0.01, ne + 0.01], "ne": [ne - 0.01, ne + 0.01]},
        "reliability": {"like": [[0.1, 0.12, 600.0], [0.4, 0.38, 634.0]]},
        "one_class": {"like": {"users": 7, "impressions": 31}},
        **extra,
    }


def result(ne: float = 0.9, **extra: Any) -> dict[str, Any]:
    return {
        "name": "ranker",
        "seed": 0,
        "selected_by": "validation ne",
        "history": [{"epoch": 1, "loss": 1.5, "ne": 0.97}, {"epoch": 2, "loss": 1.2, "ne": 0.93}],
        "best_epoch": 2,
        "epochs": 2,
        "stopped": "epochs",
        "seconds": 5.0,
        "validation": report("ranker", 0.93),
        "test": report("ranker", ne),
        "baselines": [report("global rate", 1.0), report("item rate", 0.95)],
        "config": {"loop": {"seed": 0}},
        **extra,
    }


def test_the_card_says_everything_a_reader_needs() -> None:
    card = render_card(result(), drawn=True)
    assert "**like NE 0.9000 (0.8900–0.9100), like AUC 0.7500" in card
    assert "1,234 candidates in 90 requests of 40 users" in card
    assert "Weights of epoch 2 of 2" in card
    assert card.index("**ranker**") < card.index("| item rate") < card.index("| global rate")
    assert "like: 7 users with 31 candidates" in card
    assert "| 0.100 | 0.120 | 600 |" in card
    assert "Task like: the action like happens (25.0% of training candidates)." in card
    assert "is better than this model" not in card


def test_a_baseline_that_wins_is_said_up_front() -> None:
    assert "**The baseline item rate is better than this model (NE 0.9500).**" in render_card(result(0.96), drawn=False)


def test_only_amounts_is_a_result_too() -> None:
    only = {"stars.mae": 0.8, "stars.rmse": 1.0}
    parts = {"metrics": only, "intervals": {}, "reliability": {}, "one_class": {}}
    card = render_card(
        result(test=report("ranker", 0, **parts), baselines=[report("global rate", 0, **parts)]), drawn=False
    )
    assert "**stars MAE 0.8000** on test" in card
    assert "Calibration" not in card


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    write_card(tmp_path, result())
    assert (tmp_path / "curves.png").stat().st_size > 10_000


class TestStudy:
    def study(self) -> dict[str, Any]:
        runs = [result(ne, seed=seed) for seed, ne in enumerate((0.90, 0.92))]
        return {**summarise(runs, command="longview study x"), "path": "ranking.json"}

    def test_it_has_means_and_spread(self) -> None:
        study = self.study()
        assert study["mean"]["ne"] == pytest.approx(0.91)
        assert study["std"]["ne"] == pytest.approx(0.0141, abs=1e-3)
        assert study["impressions"] == "a" * 16

    def test_a_table_of_its_own_in_the_readme(self) -> None:
        study = self.study()
        other = {key: report("item rate", 0.95)[key] for key in ("name", "metrics", "intervals", "impressions")}
        text = ranking_table({**study, "baselines": [other]})
        assert text.index("**ranker**") < text.index("| item rate")
        assert "**0.9100** ± 0.0141" in text or "**0.9100 ± 0.0141**" in text
        assert "[ranking.json](results/ranking.json)" in text
        assert tables([study]).startswith("**shop, global-time: ranking candidates**")
