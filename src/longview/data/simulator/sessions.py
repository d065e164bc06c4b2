"""When simulated users come, and which of their long-lived tastes each visit follows.

A user has a few tastes (a category in a style) for the whole of the log and comes in short visits, each on one
taste. A taste just used rests and one long unused pulls, so tastes return after long gaps: what a user did far
back says more about the next visit than the last few events do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.catalogue import Catalogue
from longview.data.simulator.config import START, SimulationConfig

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CONTINUE = 0.2  # share of visits that carry on with the taste of the one before
PULL = 1.5  # how strongly a taste unused for long pulls (exponent of the visits since its last use)


@dataclass(frozen=True)
class Timeline:
    """Every event in order of user and time, before items are chosen.

    `user`, `time` (seconds), `category`, `style` of the visit, and `first` (the visit's first event), each (events,).
    """

    user: Ints
    time: Ints
    category: Ints
    style: Ints
    first: Bools


def make_timeline(config: SimulationConfig, catalogue: Catalogue, generator: np.random.Generator) -> Timeline:
    """Draw how many events each user has, when they happen, and what each visit is about."""
    lengths = _history_lengths(config, generator)
    user = np.repeat(np.arange(config.users), lengths)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = generator.random(len(user)) < 1 / config.session_length
    first[begins] = True
    visit = np.cumsum(first) - 1
    visits = np.bincount(user[first], minlength=config.users)
    category, style = _subjects(config, catalogue, visits, generator)
    return Timeline(user, _times(config, begins, lengths, first, generator), category[visit], style[visit], first)


def _history_lengths(config: SimulationConfig, generator: np.random.Generator) -> Ints:
    lengths = np.exp(generator.normal(np.log(config.max_history / 4), 0.8, config.users))
    return np.clip(lengths, min(5, config.max_history), config.max_history).astype(np.int64)


def _times(config: SimulationConfig, begins: Ints, lengths: Ints, first: Bools, generator: np.random.Generator) -> Ints:
    """Return seconds: short steps within a visit, heavy-tailed gaps between visits, stretched over a user's stay."""
    users = len(lengths)
    joined = config.span * 0.4 * generator.random(users)
    left = config.span * (1 - 0.1 * generator.random(users) ** 2)
    within = np.where(first, 0.0, generator.gamma(2.0, 30.0, len(first)) + 1)
    between = np.where(first, np.exp(generator.normal(0, 1.2, len(first))), 0.0)
    between[begins] = 0.0
    stay = np.maximum(left - joined - np.add.reduceat(within, begins), 0.0)
    total = np.maximum(np.add.reduceat(between, begins), 1e-9)
    steps = within + between * np.repeat(stay / total, lengths)
    elapsed = np.cumsum(steps)
    elapsed = elapsed - np.repeat(elapsed[begins] - steps[begins], lengths)
    seconds: Ints = np.minimum(np.repeat(joined, lengths) + elapsed, config.span - 1).astype(np.int64)
    return START + seconds


def _subjects(
    config: SimulationConfig, catalogue: Catalogue, visits: Ints, generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return category and style of every visit, visits of a user together."""
    taste_category, taste_style = _tastes(config, catalogue, generator)
    slot = _rotate(taste_category.shape[1], visits, generator)
    user = np.repeat(np.arange(config.users), visits)
    explore = generator.random(len(user)) < config.explore
    category = np.where(explore, generator.integers(config.num_categories, size=len(user)), taste_category[user, slot])
    style = np.where(explore, generator.integers(config.num_styles, size=len(user)), taste_style[user, slot])
    return category, style


def _tastes(config: SimulationConfig, catalogue: Catalogue, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the categories (users, tastes), all different, and styles (users, tastes) of every user."""
    count = min(config.tastes, config.num_categories)
    demand = np.bincount(catalogue.category, catalogue.appeal, minlength=config.num_categories)
    keys = np.log(demand + 1e-9) * 0.5 + generator.gumbel(size=(config.users, config.num_categories))
    category = np.argsort(-keys, axis=1)[:, :count]
    favourites = generator.integers(config.num_styles, size=(config.users, 2))
    return category, np.take_along_axis(favourites, generator.integers(2, size=category.shape), axis=1)


def _rotate(tastes: int, visits: Ints, generator: np.random.Generator) -> Ints:
    """Return the taste of every visit. One step a visit, all users with that many visits at once."""
    users = len(visits)
    busiest = np.argsort(-visits, kind="stable")
    begins = (np.cumsum(visits) - visits)[busiest]
    leaning = generator.normal(0, 0.5, (users, tastes))
    last_used = -generator.integers(1, 2 * tastes + 1, size=(users, tastes))
    previous = generator.integers(tastes, size=users)
    slots = np.zeros(int(visits.sum()), np.int64)
    active = np.searchsorted(-visits[busiest], -np.arange(visits.max(initial=0)), side="left")
    for step, count in enumerate(active.tolist()):
        age = np.log(step - last_used[:count])
        chosen = np.argmax(leaning[:count] + PULL * age + generator.gumbel(size=(count, tastes)), axis=1)
        stay = generator.random(count) < CONTINUE
        chosen = np.where(stay, previous[:count], chosen)
        last_used[np.arange(count), chosen] = step
        previous[:count] = chosen
        slots[begins[:count] + step] = chosen
    return slots
