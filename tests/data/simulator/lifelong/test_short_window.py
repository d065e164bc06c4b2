"""A model with a short window provably cannot see the long-range part.

The proof is by intervention: what a user chose far back, for one habit, is changed in the random numbers of the
simulator. Everything the window shows stays the same, bit for bit, while the event to predict takes every possible
value exactly once. All these worlds are equally likely, so whatever a model computes from the window, its mean
probability for the truth is one over the number of choices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longview.data.simulator.lifelong import Histories, component_names, make_catalogue, predict, unfold
from longview.data.simulator.lifelong.draws import Draws, draw
from tests.data.simulator.lifelong.worlds import past_of, tiny

CONFIG = tiny(users=12)
VISIBLE = ("item", "time", "action", "watch")


def chosen_otherwise(draws: Draws, made: Histories, row: int, shift: int) -> Draws:
    """The same random numbers but for the choices of the row's slot by its user: each `shift` choices further."""
    choices = made.catalogue.config.choices
    user = np.searchsorted(made.offsets, row, side="right") - 1
    mine = np.arange(made.offsets[user], made.offsets[user + 1])
    of_slot = mine[made.item[mine] // choices == made.item[row] // choices]
    item = draws.uniform["item"].copy()
    choice = np.floor(item[of_slot] * choices)
    item[of_slot] = ((choice + shift) % choices + 0.5) / choices
    return replace(draws, uniform={**draws.uniform, "item": item})


@pytest.fixture(scope="module", params=[(), ("identity", "recall-200")], ids=["any bought", "answers bought"])
def world(request: pytest.FixtureRequest) -> tuple[Draws, Histories]:
    config = CONFIG.model_copy(update={"bought": request.param})
    draws = draw(config, 0, config.users)
    return draws, unfold(make_catalogue(config), draws)


@pytest.mark.parametrize("component", ["recall-60", "recall-200", "identity", "season"])
def test_the_window_stays_the_same_while_the_target_takes_every_value(
    world: tuple[Draws, Histories], component: str
) -> None:
    draws, made = world
    window, choices = 64, CONFIG.choices
    names = component_names(CONFIG)
    far = np.flatnonzero((made.component == names.index(component)) & (made.distance > window))
    same_as_last = far[made.item[far] == made.item[far - made.distance[far]]]
    assert len(same_as_last) > 10
    for row in same_as_last[:: max(1, len(same_as_last) // 8)].tolist():
        worlds = [unfold(made.catalogue, chosen_otherwise(draws, made, row, shift)) for shift in range(choices)]
        targets = [int(other.item[row]) for other in worlds]
        assert sorted(targets) == list(range(targets[0] // choices * choices, (targets[0] // choices + 1) * choices))
        for other in worlds:
            for name in VISIBLE:
                seen = slice(row - window, row)
                np.testing.assert_array_equal(getattr(other, name)[seen], getattr(made, name)[seen])
            assert other.time[row] == made.time[row]
            # The whole history tells: what was chosen far back is what comes.
            assert other.item[row] == other.item[row - made.distance[row]]


def test_the_oracle_of_the_window_says_the_same_in_all_of_these_worlds(world: tuple[Draws, Histories]) -> None:
    draws, made = world
    names = component_names(CONFIG)
    far = np.flatnonzero((made.component == names.index("recall-200")) & (made.distance > 64))
    row = int(far[len(far) // 2])
    worlds = [unfold(made.catalogue, chosen_otherwise(draws, made, row, shift)) for shift in range(CONFIG.choices)]
    candidate = np.array([made.item[row]])
    for window, different in ((64, 1), (None, 2)):
        found = [predict(past_of(other), np.array([row]), window, candidate).probability[0] for other in worlds]
        assert len(set(found)) == different
        assert np.mean(found) == pytest.approx(1 / CONFIG.choices)


def test_no_window_predictor_beats_the_prior_on_the_far_part(world: tuple[Draws, Histories]) -> None:
    """A lookup table of windows, fitted on the very worlds it is tested on, still has one over `choices`."""
    draws, made = world
    names = component_names(CONFIG)
    far = np.flatnonzero((made.component == names.index("recall-200")) & (made.distance > 64))[:5]
    for row in far.tolist():
        seen: dict[bytes, set[int]] = {}
        for shift in range(CONFIG.choices):
            other = unfold(made.catalogue, chosen_otherwise(draws, made, row, shift))
            key = b"".join(np.ascontiguousarray(getattr(other, name)[row - 64 : row]).tobytes() for name in VISIBLE)
            seen.setdefault(key, set()).add(int(other.item[row]))
        assert [len(values) for values in seen.values()] == [CONFIG.choices]
