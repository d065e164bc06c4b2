"""Events of the open catalogue: moves from the item before, popularity among the living, and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.catalogue import FOLLOWERS, Catalogue
from longview.data.simulator.lifelong.draws import Draws
from longview.data.simulator.lifelong.schedule import Schedule

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OpenEvents:
    """`rows` (n,) of the open events; `item` (n,) as open numbers; `moved` and `random` (n,) whether an item follows
    from the one before, or is noise; `distance` (n,) events since the open event before it in the session, or 0.
    """

    rows: Ints
    item: Ints
    moved: Bools
    random: Bools
    distance: Ints


def choose_open(catalogue: Catalogue, draws: Draws, schedule: Schedule) -> OpenEvents:
    """Choose the item of every open event; always one that exists at that time."""
    config = catalogue.config
    rows = np.flatnonzero(schedule.kind == schedule.open)
    week = catalogue.week(schedule.time[rows])
    session = np.cumsum(schedule.first)[rows]
    follows = np.append(False, session[1:] == session[:-1])[: len(rows)]
    source = draws.uniform["source"][rows]
    random = source < config.noise
    moving = follows & ~random & (source < config.noise + config.markov)
    item = np.where(random, _by_chance(catalogue, week, draws.uniform["item"][rows]), -1)
    popular = ~random & ~moving
    item[popular] = _by_popularity(catalogue, week[popular], draws.uniform["item"][rows[popular]])
    moved = _move(catalogue, item, np.flatnonzero(moving), week, draws.uniform["item"], draws.uniform["fallback"], rows)
    return OpenEvents(rows, item, moved, random, np.where(follows, np.diff(rows, prepend=0), 0))


def _move(
    catalogue: Catalogue, item: Ints, moving: Ints, week: Ints, uniform: Floats, fallback: Floats, rows: Ints
) -> Bools:
    """Fill `item` in at `moving`, one step of all runs at a time, and return where a successor was there to take.

    Where the successor does not exist at that time the item is drawn by popularity.
    """
    moved, waiting = np.zeros(len(item), bool), np.zeros(len(item), bool)
    waiting[moving] = True
    place = np.minimum(np.searchsorted(np.cumsum(FOLLOWERS), uniform[rows], side="right"), len(FOLLOWERS) - 1)
    while len(moving):
        ready = moving[~waiting[moving - 1]]
        following = catalogue.successors[item[ready - 1], place[ready]]
        there = catalogue.alive[week[ready], following]
        item[ready[there]] = following[there]
        gone = ready[~there]
        item[gone] = _by_popularity(catalogue, week[gone], fallback[rows[gone]])
        moved[ready] = there
        waiting[ready] = False
        moving = moving[waiting[moving]]
    return moved


def _by_popularity(catalogue: Catalogue, week: Ints, uniform: Floats) -> Ints:
    """Invert the running sum of the week's popularity; weeks lie end to end so that one search serves all."""
    items = catalogue.config.items
    at = np.searchsorted(catalogue.running_popularity, week + uniform, side="right")
    return np.asarray(np.minimum(at, catalogue.last_alive[week] + week * items) - week * items)


def _by_chance(catalogue: Catalogue, week: Ints, uniform: Floats) -> Ints:
    at = catalogue.first_living[week] + (uniform * catalogue.num_alive[week]).astype(np.int64)
    return catalogue.living[at]
