"""Habits and seasons: which topic an episode is about, and which item answers.

An answer's place (topic and part) is a slot. The item of a slot is the one of last time, however long ago, but for a
chosen-anew probability; and whether it is clicked follows from whether it was last time. Both are chains, so the
last event of a slot is all that its past tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.catalogue import Catalogue
from longview.data.simulator.lifelong.config import Family
from longview.data.simulator.lifelong.draws import Draws
from longview.data.simulator.lifelong.schedule import Schedule

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Habits:
    """`rows` (n,): the events with a slot; `item` (n,) inner numbers; `click` (n,); `distance` (n,) events since
    the slot's last one, 0 where there is none.
    """

    rows: Ints
    item: Ints
    click: Bools
    distance: Ints


def choose_topics(catalogue: Catalogue, draws: Draws, schedule: Schedule) -> Ints:
    """Return the topic of every event of an episode and of the introduction (events,), −1 of others."""
    topic = np.full(draws.num_events, -1, np.int64)
    for index, family in enumerate(catalogue.families):
        cues = schedule.cues(index)
        topic[cues] = family.first_topic + _rotate(family, draws, cues, draws.arrangements[index].copy())
    episode = np.flatnonzero(schedule.kind < schedule.season)
    topic[episode] = topic[episode - schedule.part[episode]]
    shown = draws.introduction.shape[1]
    if shown:
        rows = (draws.offsets[:-1, None] + np.arange(shown)).ravel()
        topic[rows] = catalogue.families[-1].first_topic + draws.introduction.ravel()
    return topic


def _rotate(family: Family, draws: Draws, cues: Ints, arrangement: Ints) -> Ints:
    """Return the topic of each cue: drawn from the pool, then resting. One use a step, all users at once."""
    user = np.searchsorted(draws.offsets, cues, side="right") - 1
    counts = np.bincount(user, minlength=draws.num_users)
    number = np.arange(len(cues)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.zeros((int(counts.max(initial=0)), draws.num_users), np.int64)
    place[number, user] = (draws.uniform["topic"][cues] * family.pool).astype(np.int64)
    row = np.arange(draws.num_users) * family.topics
    place += row
    flat = arrangement.reshape(-1)
    chosen = np.empty_like(place)
    for use in range(len(place)):
        drawn = flat[place[use]]
        chosen[use] = drawn
        if family.rest:
            back = row + (family.pool + use % family.rest)
            flat[place[use]] = flat[back]
            flat[back] = drawn
    return np.asarray(chosen[number, user])


def answer(catalogue: Catalogue, draws: Draws, schedule: Schedule, topic: Ints) -> Habits:
    """Choose item and click of every event that has a slot."""
    config, kind = catalogue.config, schedule.kind
    slot = np.full(draws.num_events, -1, np.int64)
    for index, family in enumerate(catalogue.families):
        rows = np.flatnonzero((kind == index) & (schedule.part > 0))
        local = (topic[rows] - family.first_topic) * family.answers + schedule.part[rows] - 1
        slot[rows] = family.first_slot + local
    shown = np.flatnonzero(kind == schedule.introduction)
    if len(shown):
        slot[shown] = catalogue.families[-1].first_slot + topic[shown] - catalogue.families[-1].first_topic
    seasonal = np.flatnonzero(kind == schedule.season)
    slot[seasonal] = catalogue.season_slot(schedule.time[seasonal])
    rows = np.flatnonzero(slot >= 0)
    key = draws.users()[rows] * (catalogue.habit_slots + config.seasons) + slot[rows]
    order = np.argsort(key, kind="stable")
    rows, key = rows[order], key[order]
    new = np.append(True, key[1:] != key[:-1])[: len(key)]
    anew = np.where(slot[rows] < catalogue.habit_slots, config.drift, 1 - config.season_loyalty)
    fresh = new | (draws.uniform["source"][rows] < anew)
    choice = (draws.uniform["item"][rows] * config.choices).astype(np.int64)
    item = slot[rows] * config.choices + choice[_last(fresh)]
    distance = np.where(new, 0, np.diff(rows, prepend=0))
    return Habits(rows, item, _clicks(catalogue, draws.uniform["click"][rows], new), distance)


def _clicks(catalogue: Catalogue, uniform: Floats, new: Bools) -> Bools:
    """Return whether each event is clicked, events of a slot together: a chain with two states.

    Below both probabilities it is clicked, above both it is not, in between it is what it was: a running copy.
    """
    config = catalogue.config
    yes = np.where(new, uniform < config.settled_click, uniform < config.click_before)
    decided = new | (uniform < config.click_before) | (uniform >= config.click_again)
    return np.asarray(yes[_last(decided)])


def _last(mask: Bools) -> Ints:
    """Return for each place the last place up to it where `mask` holds; the first place must hold."""
    return np.asarray(np.maximum.accumulate(np.where(mask, np.arange(len(mask)), 0)))
