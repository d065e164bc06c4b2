"""The oracle is right: equal to the obvious computation, calibrated, and better than anything else."""

from __future__ import annotations

import numpy as np
import pytest

from longview.data.simulator.lifelong import Histories, component_names, histories, next_item, predict
from longview.data.simulator.lifelong.config import LifelongConfig
from tests.data.simulator.lifelong.worlds import past_of, tiny

WINDOWS = (None, 64, 150)


def sample(made: Histories, count: int, seed: int = 0) -> np.ndarray:
    return np.unique(np.random.default_rng(seed).integers(0, made.num_events, count))


def dense(made: Histories, row: int, window: int | None) -> np.ndarray:
    """The obvious probabilities of every item as event `row`, given the newest `window` events before it."""
    begin = int(made.offsets[np.searchsorted(made.offsets, row, side="right") - 1])
    first = begin if window is None else max(begin, row - window)
    seen = slice(first, row)
    return next_item(
        made.catalogue, made.item[seen].tolist(), made.time[seen].tolist(), int(made.time[row]), complete=first == begin
    )


@pytest.fixture(scope="module")
def made() -> Histories:
    return histories(tiny())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "changes", [{}, {"skew": 0.0, "noise": 0.3}, {"bands": (), "season_loyalty": 0.0}, {"identity_topics": 0}]
)
def test_fast_and_obvious_agree(changes: dict[str, object], window: int | None) -> None:
    made = histories(tiny(users=10, **changes))
    rows = np.union1d(sample(made, 150), np.arange(20))
    found = predict(past_of(made), rows, window)
    for place, row in enumerate(rows.tolist()):
        chance = dense(made, row, window)
        assert chance.sum() == pytest.approx(1)
        target = chance[made.item[row]]
        close = np.isclose(chance, target, rtol=1e-9, atol=0)
        assert found.probability[place] == pytest.approx(target, rel=1e-9)
        assert found.better[place] == ((chance > target) & ~close).sum()
        assert found.tied[place] == close.sum()


@pytest.mark.parametrize("window", WINDOWS)
def test_candidates_that_did_not_come_agree_too(made: Histories, window: int | None) -> None:
    generator = np.random.default_rng(1)
    for row in sample(made, 60).tolist():
        chance = dense(made, row, window)
        likely = generator.choice(made.catalogue.num_items, 15, p=chance)
        candidates = np.concatenate([likely, generator.integers(0, made.catalogue.num_items, 15)])
        found = predict(past_of(made), np.full(30, row), window, candidates)
        np.testing.assert_allclose(found.probability, chance[candidates], rtol=1e-9)
        better = (chance[None, :] > chance[candidates][:, None] * (1 + 1e-9)).sum(1)
        np.testing.assert_array_equal(found.better, better)


@pytest.mark.parametrize("window", WINDOWS)
def test_what_is_drawn_is_as_likely_as_the_oracle_says(made: Histories, window: int | None) -> None:
    """The mean log-probability of what came is the mean over what might have come, within four standard errors."""
    surprise = []
    for row in sample(made, 700, seed=2).tolist():
        chance = dense(made, row, window)
        possible = chance[chance > 0]
        surprise.append(np.log(chance[made.item[row]]) - (possible * np.log(possible)).sum())
    assert abs(np.mean(surprise)) < 4 * np.std(surprise) / np.sqrt(len(surprise))


def test_any_other_prediction_is_worse(made: Histories) -> None:
    """Sharper, flatter, another event's, or with any two components' shares exchanged: the likelihood falls."""
    rows = sample(made, 700, seed=3)
    chances = np.stack([dense(made, row, None) for row in rows.tolist()]) + 1e-12
    targets = made.item[rows]

    def score(guess: np.ndarray) -> float:
        return float(np.log((guess / guess.sum(1, keepdims=True))[np.arange(len(rows)), targets]).mean())

    best = score(chances)
    catalogue = made.catalogue
    cues = slice(catalogue.first_cue, catalogue.first_open)
    tilted = chances.copy()
    tilted[:, cues] *= 3
    shuffled = chances[np.random.default_rng(0).permutation(len(rows))]
    for other in (chances**0.7, chances**1.4, tilted, 0.9 * chances + 0.1 * shuffled, shuffled):
        assert score(other) < best - 0.005


def test_a_wider_window_never_hurts_in_the_mean(made: Histories) -> None:
    rows = np.arange(made.num_events)
    means = [np.log(predict(past_of(made), rows, window).probability).mean() for window in (64, 150, 400, None)]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.2


def test_a_window_as_long_as_the_history_is_the_whole_history(made: Histories) -> None:
    rows = sample(made, 2_000)
    full, wide = predict(past_of(made), rows), predict(past_of(made), rows, 600)
    for name in ("probability", "better", "tied", "chances", "watch"):
        np.testing.assert_array_equal(getattr(full, name), getattr(wide, name))


@pytest.mark.parametrize("component", ["recall-200", "season", "move"])
def test_a_window_shows_its_oldest_event_and_nothing_older(made: Histories, component: str) -> None:
    names = component_names(made.catalogue.config)
    chosen = np.flatnonzero((made.component == names.index(component)) & (made.distance > 0))[::40]
    repeated = made.item[chosen] == made.item[chosen - made.distance[chosen]]
    for row in (chosen if component == "move" else chosen[repeated]).tolist():
        distance = int(made.distance[row])
        inside, outside = (predict(past_of(made), np.array([row]), window) for window in (distance, distance - 1))
        assert inside.probability[0] > outside.probability[0]


@pytest.mark.parametrize("bought", [None, "identity", "recall-60"])
@pytest.mark.parametrize("window", WINDOWS)
def test_actions_happen_as_often_as_the_oracle_says(window: int | None, bought: str | None) -> None:
    made = histories(tiny(bought=bought))
    found = predict(past_of(made), np.arange(made.num_events), window)
    for place, bit in enumerate((1, 2, 3)):
        happened, chance = made.action >> bit & 1, found.chances[:, place]
        for low in (0.0, 0.1, 0.3, 0.6, 0.8):
            inside = (chance >= low) & (chance < low + 0.2)
            if inside.sum() > 100:
                error = happened[inside].mean() - chance[inside].mean()
                assert abs(error) <= 4.5 * np.sqrt((chance * (1 - chance))[inside].mean() / inside.sum())
    ratio = made.watch.mean() / found.watch.mean()
    assert abs(ratio - 1) < 4 * made.watch.std() / made.watch.mean() / np.sqrt(made.num_events)


def test_far_habits_are_known_only_to_those_who_see_them() -> None:
    config = LifelongConfig(users=24, max_history=4_096, bands=({"distance": 500, "share": 0.2},), windows=())
    made = histories(config)
    names = component_names(config)
    rows = np.flatnonzero((made.component == names.index("recall-500")) & (made.distance > 400))
    near, all_of_it = predict(past_of(made), rows, 400), predict(past_of(made), rows)
    np.testing.assert_allclose(near.probability, 1 / config.choices)
    np.testing.assert_array_equal(near.tied, config.choices)
    assert (all_of_it.better == 0).mean() > 0.9
    assert np.log(all_of_it.probability).mean() - np.log(near.probability).mean() > 2.5
