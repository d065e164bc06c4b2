"""Lifelong histories of a block of users, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.actions import act, bought_answers, open_click
from longview.data.simulator.lifelong.catalogue import Catalogue, make_catalogue
from longview.data.simulator.lifelong.config import LifelongConfig, component_names
from longview.data.simulator.lifelong.draws import Draws, draw
from longview.data.simulator.lifelong.habits import Habits, answer, choose_topics
from longview.data.simulator.lifelong.openings import OpenEvents, choose_open
from longview.data.simulator.lifelong.schedule import Schedule, make_schedule

Ints = npt.NDArray[np.int64]

BLOCK_EVENTS = 1 << 19  # events generated at a time: about 0.2 GiB


@dataclass(frozen=True)
class Histories:
    """Users `first_user`, `first_user` + 1, …, whose events are [offsets[u], offsets[u + 1]), in order of time.

    `item` (events,) int64 inner numbers (see `catalogue`); `time` (events,) int64 seconds; `action` (events,) int64
    bitmask of `ACTIONS`; `watch` (events,) float32 seconds; `component` (events,) int8, what made the event, an index
    of `component_names`; `distance` (events,) int32, how many events back the event lies that the item depends on,
    0 for none.
    """

    catalogue: Catalogue
    first_user: int
    offsets: Ints
    item: Ints
    time: Ints
    action: Ints
    watch: npt.NDArray[np.float32]
    component: npt.NDArray[np.int8]
    distance: npt.NDArray[np.int32]

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        return len(self.item)

    @property
    def public_items(self) -> npt.NDArray[np.int32]:
        """(events,) catalogue indices."""
        return self.catalogue.public[self.item]


def histories(
    config: LifelongConfig, first_user: int = 0, num_users: int | None = None, *, catalogue: Catalogue | None = None
) -> Histories:
    """Return the histories of users [first_user, first_user + num_users), by default all.

    A user's history depends on the rules, the seed and the user's number only; numbers beyond `config.users` are
    further people of the same world.

    Example:
        >>> rules = LifelongConfig(max_history=400, bands=(), items=100, windows=(64,))
        >>> histories(rules, first_user=5, num_users=2).num_events
        800
    """
    draws = draw(config, first_user, config.users if num_users is None else num_users)
    return ended(unfold(catalogue or make_catalogue(config), draws))


def ended(made: Histories) -> Histories:
    """Return `made` with every history cut after its last event of `config.ending`, where it has two events by then.

    Which kinds come when does not depend on what is chosen, so the chances of the last item are what they were.
    """
    config = made.catalogue.config
    if not config.ending:
        return made
    names = component_names(config)
    wanted = np.isin(made.component, [names.index(name) for name in config.ending])
    user = np.repeat(np.arange(made.num_users), np.diff(made.offsets))
    np.maximum.at(last := np.zeros(made.num_users, np.int64), user[wanted], np.flatnonzero(wanted) + 1)
    end = np.where(last >= made.offsets[:-1] + 2, last, made.offsets[1:])
    kept = np.arange(made.num_events) < end[user]
    columns = ("item", "time", "action", "watch", "component", "distance")
    return replace(
        made,
        offsets=np.concatenate([[0], np.cumsum(end - made.offsets[:-1])]),
        **{name: getattr(made, name)[kept] for name in columns},
    )


def unfold(catalogue: Catalogue, draws: Draws) -> Histories:
    """Return the histories that follow from the random numbers `draws`: everything else is fixed."""
    schedule = make_schedule(catalogue.config, draws)
    topic = choose_topics(catalogue, draws, schedule)
    habits = answer(catalogue, draws, schedule, topic)
    opened = choose_open(catalogue, draws, schedule)
    return _assemble(catalogue, draws, schedule, topic, habits, opened)


def blocks(config: LifelongConfig, catalogue: Catalogue | None = None) -> Iterator[Histories]:
    """Yield the histories of all users of `config`, a block of about `BLOCK_EVENTS` events at a time."""
    catalogue = catalogue or make_catalogue(config)
    size = max(1, BLOCK_EVENTS // config.max_history)
    for first in range(0, config.users, size):
        yield histories(config, first, min(size, config.users - first), catalogue=catalogue)


def _assemble(
    catalogue: Catalogue, draws: Draws, schedule: Schedule, topic: Ints, habits: Habits, opened: OpenEvents
) -> Histories:
    count = len(catalogue.families)
    is_cue = (schedule.kind < count) & (schedule.part == 0)
    item = np.where(is_cue, catalogue.first_cue + topic, -1)
    item[habits.rows] = habits.item
    item[opened.rows] = catalogue.first_open + opened.item
    distance = np.zeros(draws.num_events, np.int32)
    distance[habits.rows] = habits.distance
    distance[opened.rows[opened.moved]] = opened.distance[opened.moved]
    component = schedule.kind.copy()  # families and season have the numbers of their kinds
    component[opened.rows] = count + np.where(opened.moved, 1, np.where(opened.random, 3, 2))
    component[is_cue] = count + 4
    component[schedule.kind == schedule.introduction] = count + 5
    match = np.zeros(draws.num_events, bool)
    before = np.append(-1, opened.item[:-1])[: len(opened.item)]
    match[opened.rows] = (opened.distance > 0) & (catalogue.successors[before] == opened.item[:, None]).any(1)
    click = draws.uniform["click"] < open_click(catalogue, item, match)
    click[habits.rows] = habits.click
    bought = bought_answers(catalogue, item, schedule.kind == schedule.introduction)
    action, watch = act(catalogue, item, click, draws.uniform["liking"], draws.normal, bought)
    return Histories(
        catalogue, draws.first_user, draws.offsets, item, schedule.time, action, watch, component, distance
    )
