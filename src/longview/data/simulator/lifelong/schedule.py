"""When events happen and of what kind each is: a habit's cue or answer, a season's item, or an open item.

A history is the introduction of the user's traits, then independent steps: an episode (a cue and its answers) or a
single event. Kinds do not depend on what came before, so they tell nothing about what lies beyond a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.config import SESSION_GAP, START, STEP, LifelongConfig
from longview.data.simulator.lifelong.draws import Draws

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BASE_STEP = 5  # seconds; the shortest pause within a session
STEP_CAP = 1_500  # and about the longest


@dataclass(frozen=True)
class Schedule:
    """Of each event (events,): its `kind` (a family's index; then season, open and introduction), its `part` of the
    episode (0: the cue, or a single event), its `time` in seconds, and whether it is the `first` of a session.
    """

    kind: npt.NDArray[np.int8]
    part: npt.NDArray[np.int64]
    time: Ints
    first: Bools
    season: int
    open: int
    introduction: int

    def cues(self, family: int) -> Ints:
        """Return the events that begin an episode of the family with this index."""
        return np.flatnonzero((self.kind == family) & (self.part == 0))


def make_schedule(config: LifelongConfig, draws: Draws) -> Schedule:
    """Lay out the events of a block of users."""
    count = len(config.families)
    begins, kinds = _steps(config, draws)
    length = np.diff(np.append(begins, draws.num_events))
    kind = np.repeat(kinds, length)
    part = np.arange(draws.num_events) - np.repeat(begins, length)
    first = np.zeros(draws.num_events, bool)
    first[begins] = draws.uniform["session"][begins] < config.step_length / config.session_length
    first[draws.offsets[:-1]] = True
    return Schedule(kind, part, _times(config, draws, first), first, count, count + 1, count + 2)


def _steps(config: LifelongConfig, draws: Draws) -> tuple[Ints, npt.NDArray[np.int8]]:
    """Return the first event and the kind of every step; steps of a user together, in order."""
    families, shown = config.families, config.introduction
    rates = [*(family.rate for family in families), config.season_rate]
    sizes = np.array([*(1 + family.answers for family in families), 1, 1])
    lengths = draws.lengths
    inside = np.arange(lengths.max())[None, :] < lengths[:, None]
    drawn = np.zeros(inside.shape)
    drawn[inside] = draws.uniform["kind"]
    kind = np.searchsorted(np.cumsum(rates), drawn, side="right")
    begin = shown + np.cumsum(sizes[kind], 1) - sizes[kind]
    real = begin < lengths[:, None]
    at = (draws.offsets[:-1, None] + begin)[real]
    kinds = np.full(draws.num_events, -1, np.int8)
    kinds[at] = kind[real]
    if shown:
        kinds[(draws.offsets[:-1, None] + np.arange(shown))[np.arange(shown) < lengths[:, None]]] = len(families) + 2
    begins = np.flatnonzero(kinds >= 0)
    return begins, kinds[begins]


def _times(config: LifelongConfig, draws: Draws, first: Bools) -> Ints:
    """Return seconds: short steps within a session, heavy-tailed pauses between, stretched over a user's stay."""
    begins, lengths = draws.offsets[:-1], draws.lengths
    start = config.span * 0.05 * draws.stay[:, 0]
    end = config.span * (1 - 0.05 * draws.stay[:, 1])
    exponential = -np.log1p(-draws.uniform["gap"])
    steps = BASE_STEP + np.minimum((STEP - BASE_STEP) * exponential, STEP_CAP)
    steps[first] = SESSION_GAP + 1
    steps[begins] = 0
    weight = np.where(first, exponential**1.5, 0.0)
    weight[begins] = 0
    free = np.maximum(end - start - np.add.reduceat(steps, begins), 0)
    stretch = free / np.maximum(np.add.reduceat(weight, begins), 1e-9)
    stretch[np.add.reduceat(first.astype(np.int64), begins) < 2] = 0  # a single session
    elapsed = np.cumsum(steps + weight * np.repeat(stretch, lengths))
    elapsed += np.repeat(start - elapsed[begins], lengths)
    return START + elapsed.astype(np.int64)
