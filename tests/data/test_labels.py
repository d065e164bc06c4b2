"""Tasks: what may be predicted, what it is called, and which labels events give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from longview.data.dataset import PreparedData
from longview.data.labels import TaskConfig, labels_of, missing_labels, resolve_tasks
from longview.data.schema import training_events
from longview.errors import InputError
from tests.ranking_log import write_ranking

LIKE = TaskConfig(name="like", action="like")
STARS = TaskConfig(name="stars", strength="rating")
GOOD = TaskConfig(name="good", strength="rating", at_least=4)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("labels") / "shop")


def test_labels_are_bits_amounts_and_comparisons(shop: PreparedData) -> None:
    rows = np.arange(shop.num_events)
    labels, rating = labels_of([LIKE, STARS, GOOD], shop, rows), shop.strength("rating")
    assert shop.actions is not None
    assert np.array_equal(labels[:, 0], shop.actions & 1)
    assert np.array_equal(labels[:, 1], rating, equal_nan=True)
    assert np.array_equal(np.isnan(labels[:, 2]), np.isnan(rating)), "what is unknown stays unknown"
    assert np.array_equal(labels[~np.isnan(rating), 2], rating[~np.isnan(rating)] >= 4)


def test_a_sampled_candidate_has_no_action_and_no_amount() -> None:
    assert np.array_equal(missing_labels([LIKE, STARS, GOOD]), [0, np.nan, 0], equal_nan=True)


def test_tasks_know_their_mean_in_training(shop: PreparedData) -> None:
    like, stars = resolve_tasks([LIKE, STARS], shop)
    labels = labels_of([LIKE, STARS], shop, training_events(shop)).astype(float)
    assert like.mean == pytest.approx(labels[:, 0].mean())
    assert (stars.mean, stars.deviation) == pytest.approx((np.nanmean(labels[:, 1]), np.nanstd(labels[:, 1])))
    assert (like.kind, stars.kind) == ("binary", "regression")


def test_by_default_every_action_and_strength_is_a_task(shop: PreparedData) -> None:
    assert [task.name for task in resolve_tasks([], shop)] == ["like", "buy", "rating"]


def test_strengths_alone_give_something_to_order_by(shop: PreparedData, tmp_path: Path) -> None:
    plain = shop.meta.model_copy(update={"actions": ()})
    data = PreparedData(None, plain, shop.events, shop.users, shop.item_table)
    tasks = resolve_tasks([], data)
    assert [(task.name, task.kind) for task in tasks] == [("rating>=4", "binary"), ("rating", "regression")]


class TestBadInput:
    def test_an_unknown_action_names_the_known_ones(self, shop: PreparedData) -> None:
        with pytest.raises(InputError, match=r"the action 'lik', which shop .*did you mean 'like'.*actions: like, buy"):
            resolve_tasks([TaskConfig(name="x", action="lik")], shop)

    def test_an_unknown_strength_names_the_known_ones(self, shop: PreparedData) -> None:
        with pytest.raises(InputError, match=r"the strength 'stars'.*its strengths: rating"):
            resolve_tasks([TaskConfig(name="x", strength="stars")], shop)

    def test_a_name_twice(self, shop: PreparedData) -> None:
        with pytest.raises(InputError, match="two tasks are called 'like'"):
            resolve_tasks([LIKE, LIKE], shop)

    def test_an_infinite_strength_names_the_user(self, tmp_path: Path) -> None:
        def blow_up(events: dict[str, np.ndarray]) -> None:
            events["strength_rating"][0] = np.inf

        with pytest.raises(InputError, match="'rating' is infinite at an event of user 'user 0'"):
            resolve_tasks([STARS], write_ranking(tmp_path / "inf", change=blow_up))

    def test_a_strength_without_values(self, tmp_path: Path) -> None:
        def forget(events: dict[str, np.ndarray]) -> None:
            events["strength_rating"][:] = np.nan

        with pytest.raises(InputError, match="no training event has a value of 'rating'"):
            resolve_tasks([STARS], write_ranking(tmp_path / "nan", change=forget))

    def test_nothing_to_predict(self, shop: PreparedData) -> None:
        plain = shop.meta.model_copy(update={"actions": (), "strengths": ()})
        with pytest.raises(InputError, match="nothing to predict"):
            resolve_tasks([], PreparedData(None, plain, shop.events, shop.users, shop.item_table))

    @pytest.mark.parametrize(
        "values", [{}, {"action": "like", "strength": "rating"}, {"action": "like", "at_least": 3}]
    )
    def test_a_task_has_one_source(self, values: dict[str, object]) -> None:
        with pytest.raises(ValidationError, match="task 'x'"):
            TaskConfig(name="x", **values)
