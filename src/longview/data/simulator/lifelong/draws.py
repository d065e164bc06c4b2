"""Random numbers of a block of users, each user's own: equal whoever else is simulated, and in which blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.config import LifelongConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COLUMNS = ("kind", "session", "gap", "topic", "source", "item", "fallback", "click", "liking")
SPREAD = 0.5  # of the logarithm of history lengths


@dataclass(frozen=True)
class Draws:
    """Users `first_user`, `first_user` + 1, … with `offsets` (users + 1,) into all of their events.

    `stay` (users, 2) and, for each of `COLUMNS`, `uniform[name]` (events,) in [0, 1); `normal` (events,) float32;
    `arrangements`: for each family (users, topics), a random order of its topics; `introduction` (users, traits).
    """

    first_user: int
    offsets: Ints
    stay: Floats
    uniform: dict[str, Floats]
    normal: npt.NDArray[np.float32]
    arrangements: list[Ints]
    introduction: Ints

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        return int(self.offsets[-1])

    def users(self) -> Ints:
        """(events,) the user of each event, counted from `first_user`."""
        return np.repeat(np.arange(self.num_users), self.lengths)


def draw(config: LifelongConfig, first_user: int, num_users: int) -> Draws:
    """Draw everything random of users [first_user, first_user + num_users)."""
    families = config.families
    sources = [_generator(config, user) for user in range(first_user, first_user + num_users)]
    stay = np.stack([source.random(2) for source in sources])
    lengths = np.array([_length(config, source) for source in sources], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrangements = [
        np.stack([source.permutation(family.topics) for source in sources]).astype(np.int64) for family in families
    ]
    introduction = np.stack([source.permutation(config.introduction) for source in sources]).astype(np.int64)
    uniform = np.empty((len(COLUMNS), offsets[-1]))
    normal = np.empty(offsets[-1], np.float32)
    for user, source in enumerate(sources):
        begin, end = offsets[user], offsets[user + 1]
        uniform[:, begin:end] = source.random((end - begin, len(COLUMNS))).T
        source.standard_normal(out=normal[begin:end], dtype=np.float32)
    return Draws(
        first_user=first_user,
        offsets=offsets,
        stay=stay,
        uniform=dict(zip(COLUMNS, uniform, strict=True)),
        normal=normal,
        arrangements=arrangements,
        introduction=introduction,
    )


def _generator(config: LifelongConfig, user: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([config.seed, user])))


def _length(config: LifelongConfig, source: np.random.Generator) -> int:
    if config.events_per_user is None:
        return config.max_history
    drawn = math.exp(source.normal(math.log(config.events_per_user), SPREAD))
    return int(np.clip(drawn, min(config.introduction + 2, config.max_history), config.max_history))
