"""The same prediction, the obvious way: one history, one loop, the probability of every item.

`predict` is tested against this; it is also what to read first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.catalogue import FOLLOWERS, Catalogue
from longview.data.simulator.lifelong.config import SESSION_GAP

Floats = npt.NDArray[np.float64]


def next_item(
    catalogue: Catalogue, items: Sequence[int], times: Sequence[int], at: int, *, complete: bool = True
) -> Floats:
    """Return the probability (num_items,) of every item (inner numbers) as the next event, at time `at`.

    Args:
        catalogue: the rules.
        items: inner numbers of the visible events, oldest first.
        times: their seconds.
        at: seconds of the event to predict.
        complete: the visible events are the whole history; False: the newest of more, an introduction being over.
    """
    config = catalogue.config
    chance = np.zeros(catalogue.num_items)
    slots = [item // config.choices if item < catalogue.first_cue else -1 for item in items]
    last = {slot: item for slot, item in zip(slots, items, strict=True) if slot >= 0}
    if complete and len(items) < config.introduction:
        traits = catalogue.families[-1]
        for slot in range(traits.first_slot, traits.first_slot + traits.slots):
            if slot not in last:
                chance[_choices(catalogue, slot)] = 1 / (config.introduction - len(items)) / config.choices
        return chance
    due = catalogue.next_slot[items[-1]] if len(items) else -1
    if due >= 0:
        _add_slot(catalogue, chance, int(due), last, 1.0, 1 - config.drift)
        return chance
    _add_cues(catalogue, chance, items)
    season = int(catalogue.season_slot(np.array([at]))[0])
    _add_slot(catalogue, chance, season, last, config.season_rate, config.season_loyalty)
    _add_open(catalogue, chance, items, times, at)
    return chance


def _choices(catalogue: Catalogue, slot: int) -> slice:
    return slice(slot * catalogue.config.choices, (slot + 1) * catalogue.config.choices)


def _add_slot(catalogue: Catalogue, chance: Floats, slot: int, last: dict[int, int], rate: float, stay: float) -> None:
    stay = stay if slot in last else 0.0
    chance[_choices(catalogue, slot)] += rate * (1 - stay) / catalogue.config.choices
    if slot in last:
        chance[last[slot]] += rate * stay


def _add_cues(catalogue: Catalogue, chance: Floats, items: Sequence[int]) -> None:
    for family in catalogue.families:
        begin = catalogue.first_cue + family.first_topic
        used = [item for item in items if begin <= item < begin + family.topics]
        resting = used[-family.rest :] if family.rest else []
        possible = [item for item in range(begin, begin + family.topics) if item not in resting]
        chance[possible] += family.rate / len(possible)


def _add_open(catalogue: Catalogue, chance: Floats, items: Sequence[int], times: Sequence[int], at: int) -> None:
    config, rate = catalogue.config, catalogue.config.open_rate
    week = int(catalogue.week(np.array([at]))[0])
    alive = catalogue.alive[week]
    last, later = -1, at  # the open item before, within the session
    for item, time in zip(reversed(items), reversed(times), strict=True):
        if later - time >= SESSION_GAP:
            break
        if item >= catalogue.first_open:
            last = item - catalogue.first_open
            break
        later = time
    part = chance[catalogue.first_open :]
    part[alive] += rate * config.noise / alive.sum()
    popular = 1 - config.noise
    if last >= 0:
        for following, share in zip(catalogue.successors[last], FOLLOWERS, strict=True):
            if alive[following]:
                part[following] += rate * config.markov * share
                popular -= config.markov * share
    part += rate * popular * catalogue.popularity[week]
