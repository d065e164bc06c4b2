"""What histories show at given events, and where: the last of a slot, of a session, and the habits begun."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.catalogue import Catalogue
from longview.data.simulator.lifelong.config import SESSION_GAP

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Past:
    """Histories as an observer sees them: `item` (inner numbers), `time`, `action` (events,), `offsets` (users + 1,).

    Nothing here uses how an event came about, only what is in the log.
    """

    catalogue: Catalogue
    offsets: Ints
    item: Ints
    time: Ints
    action: Ints

    def begins(self, rows: Ints) -> Ints:
        """Return the first event of the user of each row."""
        return self.offsets[self.users(rows)]

    def users(self, rows: Ints) -> Ints:
        """Return the user of each row."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def last_in_slot(self, rows: Ints, slots: Ints) -> Ints:
        """Return the user's last event in the slot before each row; −1 where there is none."""
        wanted = self.users(rows) * self._slots + slots
        place = np.searchsorted(self._slot_keys, wanted * len(self.item) + rows) - 1
        key, row = np.divmod(self._slot_keys[np.maximum(place, 0)], len(self.item)) if len(self._slot_keys) else (-1, 0)
        return np.where((place >= 0) & (key == wanted), row, -1)

    def last_open(self, rows: Ints) -> Ints:
        """Return the last event of the open catalogue before each row in its session; −1 where there is none."""
        place = np.searchsorted(self._open_rows, rows) - 1
        if not len(self._open_rows):
            return np.full(len(rows), -1)
        row = self._open_rows[np.maximum(place, 0)]
        same = (place >= 0) & (row >= self.begins(rows)) & (self._session[row] == self._session[rows])
        return np.where(same, row, -1)

    def cues_between(self, family: int, begin: Ints, end: Ints) -> Ints:
        """Return how many episodes of a family begin in [begin, end)."""
        rows = self.cue_rows[family]
        return np.searchsorted(rows, end) - np.searchsorted(rows, begin)

    @property
    def _slots(self) -> int:
        return self.catalogue.habit_slots + self.catalogue.config.seasons

    @cached_property
    def _slot_keys(self) -> Ints:
        """Sorted (user, slot, row) of all events with a slot, as one number each."""
        rows = np.flatnonzero(self.item < self.catalogue.first_cue)
        slot = self.item[rows] // self.catalogue.config.choices
        return np.sort((self.users(rows) * self._slots + slot) * len(self.item) + rows)

    @cached_property
    def _open_rows(self) -> Ints:
        return np.flatnonzero(self.item >= self.catalogue.first_open)

    @cached_property
    def _session(self) -> Ints:
        first = np.diff(self.time, prepend=self.time[:1]) >= SESSION_GAP
        first[self.offsets[:-1]] = True
        return np.cumsum(first)

    @cached_property
    def cue_rows(self) -> list[Ints]:
        """Of each family, the events that begin an episode."""
        found = []
        for family in self.catalogue.families:
            begin = self.catalogue.first_cue + family.first_topic
            found.append(np.flatnonzero((self.item >= begin) & (self.item < begin + family.topics)))
        return found
