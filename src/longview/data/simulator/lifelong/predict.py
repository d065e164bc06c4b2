"""The best possible prediction: exact probabilities of the next item and of what is done with it.

Given the whole history these follow from the rules of the simulator. Given the newest W events only, what lies
beyond is integrated out exactly, which symmetry makes simple: topics, and the choices of a slot, that the window does
not show are exchangeable, so all of them are equally likely, and an unseen chain of clicks is at its stationary value.
The time of the event to predict (when the recommendation is asked for) is known; what follows from it is the season,
which items exist, and whether a session begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.actions import bought_answers, chances, expected_watch, open_click
from longview.data.simulator.lifelong.catalogue import FOLLOWERS, Catalogue
from longview.data.simulator.lifelong.past import Past

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EVERYTHING = np.iinfo(np.int64).max >> 2  # a window that no history fills
SAME = 1e-9  # relative difference below which two probabilities are the same


@dataclass(frozen=True)
class Prediction:
    """For each described event (n,): the `probability` of its item, `better` (how many items are more probable) and
    `tied` (how many are as probable, itself included); `chances` (n, 3) of click, like and buy, and mean `watch`
    seconds, given the item.
    """

    probability: Floats
    better: Ints
    tied: Ints
    chances: Floats
    watch: Floats


def predict(past: Past, rows: Ints, window: int | None = None, items: Ints | None = None) -> Prediction:
    """Describe `items` (inner numbers; by default what really happened) as the events `rows`.

    Args:
        past: the histories; event t is predicted from what is before it.
        rows: (n,) events.
        window: how many of the newest events before each row are visible; None for all. Below `config.narrowest`
            the last open event of the session may lie outside, which is then taken as if there were none.
        items: (n,) a candidate a row, whose probability may be zero.
    """
    catalogue, config = past.catalogue, past.catalogue.config
    target = past.item[rows] if items is None else items
    visible = EVERYTHING if window is None else window
    begin = past.begins(rows)
    position = rows - begin
    shown = position < config.introduction
    due = np.where(position > 0, catalogue.next_slot[past.item[rows - 1]], -1)
    free = ~shown & (due < 0)
    probability = np.zeros(len(rows))
    better, tied = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
    for chosen, levels in ((shown, _introduced), (~shown & (due >= 0), _answered), (free, _opened)):
        at = np.flatnonzero(chosen)
        if len(at):
            probability[at], better[at], tied[at] = levels(past, rows[at], target[at], visible)
    click = _click(past, rows, target, visible)
    found = chances(catalogue, target, click, bought_answers(catalogue, target, shown))
    return Prediction(probability, better, tied, found, expected_watch(catalogue, target, found))


def _introduced(past: Past, rows: Ints, target: Ints, visible: int) -> tuple[Floats, Ints, Ints]:
    """Traits in random order: any choice of any trait not yet shown."""
    config, catalogue = past.catalogue.config, past.catalogue
    family = catalogue.families[-1]
    slot = target // config.choices
    fits = (slot >= family.first_slot) & (slot < family.first_slot + family.slots)
    fits &= past.last_in_slot(rows, np.where(fits, slot, 0)) < 0
    count = (config.introduction - (rows - past.begins(rows))) * config.choices
    return (
        np.where(fits, 1 / count, 0.0),
        np.where(fits, 0, count),
        np.where(fits, count, catalogue.num_items - count),
    )


def _answered(past: Past, rows: Ints, target: Ints, visible: int) -> tuple[Floats, Ints, Ints]:
    """An answer is due: the slot's last item but for drift, or any choice where the window does not show it."""
    config, catalogue = past.catalogue.config, past.catalogue
    slot = catalogue.next_slot[past.item[rows - 1]]
    last = past.last_in_slot(rows, slot)
    known = (last >= 0) & (rows - last <= visible)
    stay = np.where(known, 1 - config.drift, 0.0)
    other = (1 - stay) / config.choices
    value = np.stack([stay + other, other], 1)
    count = np.stack([known, config.choices - known], 1).astype(np.int64)
    fits = target // config.choices == slot
    probability = np.where(known & (target == past.item[last]), value[:, 0], np.where(fits, other, 0.0))
    return (probability, *_rank(catalogue, probability, value, count))


def _opened(past: Past, rows: Ints, target: Ints, visible: int) -> tuple[Floats, Ints, Ints]:
    """Nothing is due: a cue, the season, or the open catalogue."""
    catalogue = past.catalogue
    open_past = _Open.of(past, rows, visible)
    cue_value, cue_count = _cues(past, rows, visible)
    season_value, season_count, season = _season(past, rows, target, visible)
    cue = target - catalogue.first_cue
    probability = np.where(target < catalogue.first_cue, season, 0.0)
    for index, family in enumerate(catalogue.families):
        fits = (cue >= family.first_topic) & (cue < family.first_topic + family.topics)
        fits &= ~_resting(past, rows, target, index, visible)
        probability = np.where(fits, cue_value[:, index], probability)
    is_open = target >= catalogue.first_open
    probability = np.where(is_open, open_past.value(np.maximum(target - catalogue.first_open, 0)), probability)
    value = np.concatenate([cue_value, season_value, open_past.moves()[0]], 1)
    count = np.concatenate([cue_count, season_count, open_past.moves()[1]], 1)
    better, tied = _rank(catalogue, probability, value, count)
    more, same = open_past.compare(probability)
    impossible = probability == 0
    better = better + more
    return probability, better, np.where(impossible, catalogue.num_items - better, tied + same)


def _cues(past: Past, rows: Ints, visible: int) -> tuple[Floats, Ints]:
    """Return (n, families) the probability of each topic that may begin, and how many may.

    The `rest` topics used last rest. The window shows the last `used` of them; with fewer than `rest` the others are
    exchangeable, with more the pool is known.
    """
    families = past.catalogue.families
    begin = np.maximum(past.begins(rows), rows - visible)
    used = [past.cues_between(index, begin, rows) for index in range(len(families))]
    counts = [np.maximum(family.pool, family.topics - u) for family, u in zip(families, used, strict=True)]
    values = [family.rate / count for family, count in zip(families, counts, strict=True)]
    shape = (len(rows), len(families))
    return np.stack(values, 1).reshape(shape) if values else np.zeros(shape), (
        np.stack(counts, 1).reshape(shape) if counts else np.zeros(shape, np.int64)
    )


def _resting(past: Past, rows: Ints, target: Ints, index: int, visible: int) -> Bools:
    """Return where `target` is a cue of the family that is seen to rest."""
    family, catalogue = past.catalogue.families[index], past.catalogue
    cue = target - catalogue.first_cue
    ours = np.flatnonzero((cue >= family.first_topic) & (cue < family.first_topic + family.topics))
    resting = np.zeros(len(rows), bool)
    cues = past.cue_rows[index]
    begin = np.maximum(past.begins(rows), rows - visible)
    for at in ours.tolist():
        stop = np.searchsorted(cues, rows[at])
        start = max(int(np.searchsorted(cues, begin[at])), int(stop) - family.rest)
        resting[at] = bool((past.item[cues[start:stop]] == target[at]).any())
    return resting


def _season(past: Past, rows: Ints, target: Ints, visible: int) -> tuple[Floats, Ints, Floats]:
    config, catalogue = past.catalogue.config, past.catalogue
    slot = catalogue.season_slot(past.time[rows])
    last = past.last_in_slot(rows, slot)
    known = (last >= 0) & (rows - last <= visible)
    stay = np.where(known, config.season_loyalty, 0.0)
    other = config.season_rate * (1 - stay) / config.choices
    value = np.stack([config.season_rate * stay + other, other], 1)
    count = np.stack([known, config.choices - known], 1).astype(np.int64)
    same = known & (target == past.item[last])
    return value, count, np.where(same, value[:, 0], np.where(target // config.choices == slot, other, 0.0))


@dataclass(frozen=True)
class _Open:
    """The open catalogue at each event: `week` (n,); `moving` and `popular` (n,) shares of its probability;
    `following` (n, 4) successors, `there` (n, 4) whether they can follow.
    """

    catalogue: Catalogue
    week: Ints
    moving: Floats
    popular: Floats
    following: Ints
    there: Bools

    @classmethod
    def of(cls, past: Past, rows: Ints, visible: int) -> _Open:
        catalogue, config = past.catalogue, past.catalogue.config
        last = past.last_open(rows)
        known = (last >= 0) & (rows - last <= visible)
        before = np.where(known, past.item[last] - catalogue.first_open, 0)
        week = catalogue.week(past.time[rows])
        following = catalogue.successors[before]
        there = known[:, None] & catalogue.alive[week[:, None], following]
        moving = config.markov * known.astype(np.float64)
        popular = 1 - config.noise - moving * (there @ FOLLOWERS)
        return cls(catalogue, week, moving, popular, following, there)

    def value(self, item: Ints) -> Floats:
        """Return the probability of each open number `item` (n,)."""
        move = ((self.following == item[:, None]) & self.there) @ FOLLOWERS
        return np.asarray(self._base(item) + self.catalogue.config.open_rate * self.moving * move)

    def moves(self) -> tuple[Floats, Ints]:
        """Return (n, 4) the probability of each successor that can follow, and 1 where it can."""
        values = np.stack([self.value(self.following[:, place]) for place in range(len(FOLLOWERS))], 1)
        return values, self.there.astype(np.int64)

    def compare(self, probability: Floats) -> tuple[Ints, Ints]:
        """Return how many living items other than successors are more probable, and how many are as probable."""
        rate, noise = self.catalogue.config.open_rate, self._noise()
        limit = np.maximum((probability / rate - noise) / self.popular, 0.0)
        high, low = self._above(limit * (1 + SAME)), self._above(limit * (1 - SAME))
        bases = np.stack([self._base(self.following[:, place]) for place in range(len(FOLLOWERS))], 1)
        margin = rate * self.popular * limit * SAME
        over = (bases > (probability + margin)[:, None]) & self.there
        equal = (bases >= (probability - margin)[:, None]) & self.there & ~over
        return high - over.sum(1), low - high - equal.sum(1)

    def _base(self, item: Ints) -> Floats:
        share = self.catalogue.popularity[self.week, item] * self.popular + self._noise()
        return np.asarray(self.catalogue.config.open_rate * share * self.catalogue.alive[self.week, item])

    def _noise(self) -> Floats:
        return np.asarray(self.catalogue.config.noise / self.catalogue.num_alive[self.week])

    def _above(self, limit: Floats) -> Ints:
        """Return how many living items have a popularity above `limit` (n,)."""
        found = np.empty(len(limit), np.int64)
        for week in np.unique(self.week).tolist():
            at = self.week == week
            ordered = self.catalogue.ordered_popularity[week]
            found[at] = len(ordered) - np.searchsorted(ordered, limit[at], side="right")
        return np.minimum(found, self.catalogue.num_alive[self.week])


def _rank(catalogue: Catalogue, probability: Floats, value: Floats, count: Ints) -> tuple[Ints, Ints]:
    """Return how many items of the levels (n, levels) are more probable, and how many as probable."""
    high, low = (probability * (1 + SAME))[:, None], (probability * (1 - SAME))[:, None]
    better = ((value > high) * count).sum(1)
    tied = ((value >= low) & (value <= high)) * count
    return better, np.where(probability > 0, tied.sum(1), catalogue.num_items - better)


def _click(past: Past, rows: Ints, target: Ints, visible: int) -> Floats:
    """Return P(click) of each target: of a slot by its last click, of others by their quality and a move."""
    catalogue, config = past.catalogue, past.catalogue.config
    slotted = target < catalogue.first_cue
    last = past.last_in_slot(rows, np.where(slotted, target // config.choices, 0))
    known = (last >= 0) & (rows - last <= visible)
    clicked = (past.action[last] & 2) > 0
    habit = np.where(known, np.where(clicked, config.click_again, config.click_before), config.settled_click)
    before = past.last_open(rows)
    follows = (before >= 0) & (rows - before <= visible) & (target >= catalogue.first_open)
    successors = catalogue.successors[np.where(follows, past.item[before] - catalogue.first_open, 0)]
    match = follows & (successors == (target - catalogue.first_open)[:, None]).any(1)
    return np.where(slotted, habit, open_click(catalogue, target, match))
