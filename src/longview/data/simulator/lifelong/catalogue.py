"""The catalogue of a lifelong log: items of habits, cues, seasons, and an open part with births and deaths.

Inside the simulator items are numbered by section:

    [answers and traits: slot * choices + choice | seasons, likewise | cues: one a topic | open items]

`public` maps these numbers to catalogue indices, in an order that tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.simulator.lifelong.config import START, WEEK, YEAR, Family, LifelongConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FOLLOWERS = np.array([0.5, 0.25, 0.15, 0.1])  # how likely the first, second, … successor of an open item follows it
TIMELY = -1  # week of birth or death of an item that was there before, or is still there after, the log


@dataclass(frozen=True)
class Catalogue:
    """The public rules: what everybody who knows the simulator knows, whoever the user.

    `public` (num_items,) catalogue index of every inner number; `successors` (items, 4) of open items, as open
    numbers; `birth`, `death` (items,) the first and last week in which an open item exists; `weight` (items,)
    popularity; `quality` (num_items, 3) log-odds of click, of like where clicked, and of buy where liked.
    """

    config: LifelongConfig
    public: npt.NDArray[np.int32]
    successors: Ints
    birth: Ints
    death: Ints
    weight: Floats
    quality: Floats

    @cached_property
    def families(self) -> tuple[Family, ...]:
        return self.config.families

    @cached_property
    def habit_slots(self) -> int:
        """Slots of habits; the slots of the seasons follow them."""
        return sum(family.slots for family in self.families)

    @cached_property
    def first_cue(self) -> int:
        return (self.habit_slots + self.config.seasons) * self.config.choices

    @cached_property
    def first_open(self) -> int:
        return self.first_cue + sum(family.topics for family in self.families)

    @property
    def num_items(self) -> int:
        return self.first_open + self.config.items

    @cached_property
    def inner(self) -> Ints:
        """(num_items,) inner number of every catalogue index."""
        numbers = np.empty(self.num_items, np.int64)
        numbers[self.public] = np.arange(self.num_items)
        return numbers

    @cached_property
    def next_slot(self) -> Ints:
        """(num_items,) the slot that is due after an item; −1 where nothing is: the rest of an episode is fixed."""
        due = np.full(self.num_items, -1)
        for family in self.families:
            topics, places = np.arange(family.topics), np.arange(family.answers)
            slots = family.first_slot + topics[:, None] * family.answers + places
            due[self.first_cue + family.first_topic + topics] = slots[:, 0]
            items = slots[:, :-1, None] * self.config.choices + np.arange(self.config.choices)
            due[items] = slots[:, 1:, None]
        return due

    @cached_property
    def weeks(self) -> int:
        return self.config.span // WEEK + 1

    @cached_property
    def alive(self) -> Bools:
        """(weeks, items) whether an open item exists."""
        week = np.arange(self.weeks)[:, None]
        return (self.birth <= week) & (week <= self.death)

    @cached_property
    def popularity(self) -> Floats:
        """(weeks, items) probability of a draw by popularity."""
        weights = self.alive * self.weight
        return np.asarray(weights / weights.sum(1, keepdims=True))

    @cached_property
    def num_alive(self) -> Ints:
        return np.asarray(self.alive.sum(1), np.int64)

    @cached_property
    def running_popularity(self) -> Floats:
        """(weeks * items,) running sum of popularity, weeks end to end: week w goes from w to w + 1."""
        sums = np.minimum(np.cumsum(self.popularity, 1), 1.0)
        return np.asarray(sums + np.arange(self.weeks)[:, None]).reshape(-1)

    @cached_property
    def ordered_popularity(self) -> Floats:
        """(weeks, items) the popularity of each week in ascending order; zero for items that do not exist."""
        return np.sort(self.popularity, 1)

    @cached_property
    def last_alive(self) -> Ints:
        """(weeks,) the last open item that exists."""
        return np.asarray(self.config.items - 1 - np.argmax(self.alive[:, ::-1], axis=1))

    @cached_property
    def living(self) -> Ints:
        """The open items that exist, week after week; those of week w begin at `first_living[w]`."""
        return np.nonzero(self.alive)[1]

    @cached_property
    def first_living(self) -> Ints:
        return np.cumsum(self.num_alive) - self.num_alive

    def week(self, seconds: Ints) -> Ints:
        """Return the week of the log at each time."""
        return np.minimum((seconds - START) // WEEK, self.weeks - 1)

    def season_slot(self, seconds: Ints) -> Ints:
        """Return the slot of the season at each time."""
        return self.habit_slots + (seconds - START) % YEAR * self.config.seasons // YEAR

    def table(self) -> pa.Table:
        """Return `items.arrow`: id, title, category (section), topic, born and died (seconds, null: always there)."""
        section, title, topic = self._names()
        born, died = np.full(self.num_items, TIMELY), np.full(self.num_items, TIMELY)
        born[self.first_open :] = np.where(self.birth > 0, START + self.birth * WEEK, TIMELY)
        died[self.first_open :] = np.where(self.death < self.weeks - 1, START + (self.death + 1) * WEEK, TIMELY)
        order = self.inner
        digits = max(5, len(str(self.num_items)))
        return pa.table(
            {
                "id": pa.array([f"i{number:0{digits}d}" for number in range(1, self.num_items + 1)]),
                "title": pa.array(np.array(title)[order]),
                "category": pa.array([[name] for name in np.array(section)[order].tolist()]),
                "topic": pa.array(topic[order], mask=topic[order] < 0),
                "born": pa.array(born[order], mask=born[order] == TIMELY),
                "died": pa.array(died[order], mask=died[order] == TIMELY),
            }
        )

    def _names(self) -> tuple[list[str], list[str], Ints]:
        section: list[str] = []
        title: list[str] = []
        topic = np.full(self.num_items, -1)
        choices = self.config.choices
        for family in self.families:
            for slot in range(family.slots):
                number, place = divmod(slot, family.answers)
                section += [family.name] * choices
                title += [f"{family.name} topic {number}, answer {place + 1}, choice {i + 1}" for i in range(choices)]
                begin = (family.first_slot + slot) * choices
                topic[begin : begin + choices] = family.first_topic + number
        for season in range(self.config.seasons):
            section += ["season"] * choices
            title += [f"season {season + 1}, choice {i + 1}" for i in range(choices)]
        for family in self.families:
            section += [family.name] * family.topics
            title += [f"{family.name} topic {number}, cue" for number in range(family.topics)]
            begin = self.first_cue + family.first_topic
            topic[begin : begin + family.topics] = family.first_topic + np.arange(family.topics)
        section += ["open"] * self.config.items
        title += [f"open item {number + 1}" for number in range(self.config.items)]
        return section, title, topic


def make_catalogue(config: LifelongConfig) -> Catalogue:
    """Draw the catalogue of `config`: it depends on the seed and the rules, not on the number of users."""
    generator = np.random.default_rng(np.random.SeedSequence([config.seed]).spawn(1)[0])
    families, items = config.families, config.items
    slots = sum(f.slots for f in families) + config.seasons
    total = slots * config.choices + sum(f.topics for f in families) + items
    weeks = config.span // WEEK + 1
    first = max(1, items // 10)  # these are always there, so that no week is empty
    lasting = np.arange(items) < first
    birth = np.where(generator.random(items) < config.born_later, generator.integers(0, weeks, items), 0)
    death = np.where(generator.random(items) < config.die_early, generator.integers(0, weeks, items), weeks - 1)
    birth, death = np.minimum(birth, death), np.maximum(birth, death)
    order = generator.permutation(items)
    circle = generator.permutation(items)  # successors are steps around a random circle: all different, never itself
    place = np.argsort(circle)
    steps = np.stack([generator.permutation(items // 4) for _ in FOLLOWERS], 1)  # reused around the circle
    offset = steps[np.arange(items) % len(steps)] + 1 + np.arange(len(FOLLOWERS)) * (items // 4)
    return Catalogue(
        config=config,
        public=generator.permutation(total).astype(np.int32),
        successors=circle[(place[:, None] + np.minimum(offset, items - 1)) % items],
        birth=np.where(lasting, 0, birth)[order],
        death=np.where(lasting, weeks - 1, death)[order],
        weight=1 / (1 + generator.permutation(items)) ** config.skew,
        quality=generator.normal([-1.0, -1.0, -0.7], 0.7, (total, 3)),
    )
