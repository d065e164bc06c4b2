"""The data card: what a prepared data set is, before anything is trained on it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.config import Config
from longview.data.filters import Removed
from longview.data.splits import Split

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
BLOCK_EVENTS = 1 << 21
Rows = npt.NDArray[np.int64]


class FeatureCard(Config):
    """How a file of item or user features covers the log."""

    file: str
    id_column: str
    columns: tuple[str, ...]
    missing: int
    unused: int
    repeated: int


class SplitCard(Config):
    """What a split holds. Shares are of 0 to 1; a cold target is an item with no training event."""

    protocol: str
    train_events: int
    trained_users: int
    validation_users: int
    test_users: int
    cold_validation_share: float
    cold_test_share: float
    repeated_test_share: float


class DataCard(Config):
    """Counts and shares of a prepared data set; `longview prepare` writes it to `card.md` and `meta.json`."""

    inputs: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()
    rows_read: int
    incomplete_rows: int
    merged_duplicates: int
    out_of_order: int
    filters: tuple[Removed, ...] = ()
    filter_rounds: int = 0
    users: int
    items: int
    events: int
    density: float
    length_mean: float
    length_quantiles: dict[str, int]
    one_event_users: int
    item_count_quantiles: dict[str, int]
    time_range: tuple[int, int] | None
    tied_share: float | None
    repeat_share: float
    actions: dict[str, int] = {}
    strengths: dict[str, dict[str, float | None]] = {}
    item_features: FeatureCard | None = None
    user_features: FeatureCard | None = None
    split: SplitCard
    fingerprint: str

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return (heading, [(what, how much)]) for people."""
        found = [
            ("Columns", [(role, f"{name} ({how})") for role, name, how in self.columns]),
            ("Read", self._read()),
            ("Data", self._data()),
        ]
        for kind, features in (("Item", self.item_features), ("User", self.user_features)):
            if features is not None:
                found.append((f"{kind} features", _features(features)))
        return [*found, ("Split", self._split())]

    def markdown(self, name: str) -> str:
        """Return the card as Markdown."""
        lines = [f"# Data card: {name}", ""]
        lines += [f"> {note}" for note in self.notes] + ([""] if self.notes else [])
        for heading, rows in self.sections():
            lines += [f"## {heading}", "", "| | |", "|---|---|"]
            lines += [f"| {_escape(what)} | {_escape(much)} |" for what, much in rows] + [""]
        return "\n".join(lines)

    def _read(self) -> list[tuple[str, str]]:
        rows = [("rows read", f"{self.rows_read:,}")]
        if self.incomplete_rows:
            rows.append(("incomplete rows left out", f"{self.incomplete_rows:,}"))
        rows.append(("repeats of (user, item, time) merged", f"{self.merged_duplicates:,}"))
        if self.out_of_order:
            rows.append(("events that came out of order (sorted)", f"{self.out_of_order:,}"))
        for removed in self.filters:
            what = f"{removed.users:,} users, {removed.items:,} items, {removed.events:,} events"
            rows.append((f"removed by {removed.filter}", what))
        return rows

    def _data(self) -> list[tuple[str, str]]:
        rows = [
            ("users", f"{self.users:,}"),
            ("items", f"{self.items:,}"),
            ("events", f"{self.events:,}, in {self.density:.3%} of all pairs of user and item"),
            ("events of a user", f"mean {self.length_mean:.1f}; {_quantiles(self.length_quantiles)}"),
            ("users with one event", f"{self.one_event_users:,} (nothing to learn from or to predict)"),
            ("events of an item", _quantiles(self.item_count_quantiles)),
        ]
        if self.time_range is not None:
            rows.append(("time", " to ".join(_date(at) for at in self.time_range)))
        else:
            rows.append(("time", "none: the order of events only"))
        if self.tied_share is not None:
            what = "times" if self.time_range is not None else "positions"
            rows.append((f"tied {what}", f"{self.tied_share:.2%} of neighbouring events, kept in order of appearance"))
        rows.append(("repeats", f"{self.repeat_share:.2%} of events are of an item the user had before"))
        rows += [(f"action {name}", f"{count:,} events") for name, count in self.actions.items()]
        rows += [(f"strength {name}", _strength(values)) for name, values in self.strengths.items()]
        return rows

    def _split(self) -> list[tuple[str, str]]:
        split = self.split
        return [
            ("protocol", split.protocol),
            ("training", f"{split.train_events:,} events, {split.trained_users:,} users with two or more"),
            ("validation", f"{split.validation_users:,} users, {split.cold_validation_share:.2%} of targets cold"),
            ("test", f"{split.test_users:,} users, {split.cold_test_share:.2%} of targets cold"),
            ("repeats in test", f"{split.repeated_test_share:.2%} of targets are in the user's history"),
            ("fingerprint", self.fingerprint),
        ]


def split_card(split: Split, offsets: Rows, items: npt.NDArray[Any]) -> SplitCard:
    """Count what `split` holds of events `items`, whose users begin at `offsets`."""
    trained = np.zeros(int(items.max(initial=-1)) + 1, bool)
    start = offsets[:-1]
    for first, last in blocks(offsets):
        begin, end = offsets[first], offsets[last]
        events = items[begin:end]
        limit = np.repeat(split.train_end[first:last], np.diff(offsets[first : last + 1]))
        trained[events[np.arange(begin, end) < limit]] = True
    cold = [~trained[items[chosen.target]] for chosen in (split.validation, split.test)]
    return SplitCard(
        protocol=split.describe(),
        train_events=int((split.train_end - start).sum()),
        trained_users=int(np.count_nonzero(split.train_end - start > 1)),
        validation_users=len(split.validation),
        test_users=len(split.test),
        cold_validation_share=_share(cold[0]),
        cold_test_share=_share(cold[1]),
        repeated_test_share=_repeated_share(split, items),
    )


def repeats(offsets: Rows, items: npt.NDArray[Any]) -> int:
    """Count the events of an item that the user had before."""
    total, width = 0, int(items.max(initial=0)) + 1
    for first, last in blocks(offsets):
        users = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        pairs = users * width + items[offsets[first] : offsets[last]]
        pairs.sort()
        total += int(np.count_nonzero(pairs[1:] == pairs[:-1]))
    return total


def blocks(offsets: Rows) -> list[tuple[int, int]]:
    """Return ranges of users [first, last) of about `BLOCK_EVENTS` events each."""
    edges = np.unique(np.searchsorted(offsets, np.arange(0, offsets[-1] + BLOCK_EVENTS, BLOCK_EVENTS)))
    edges = np.unique(np.append(np.minimum(edges, len(offsets) - 1), len(offsets) - 1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def quantiles(values: Rows) -> dict[str, int]:
    """Return the quantiles of `QUANTILES`, the lower value where one falls between two."""
    found = np.quantile(values, QUANTILES, method="lower")
    return {f"{q:g}": int(value) for q, value in zip(QUANTILES, found, strict=True)}


def _repeated_share(split: Split, items: npt.NDArray[Any]) -> float:
    test, repeated = split.test, 0
    offsets = np.concatenate([[0], np.cumsum(test.target - test.start)])
    for first, last in blocks(offsets):
        lengths = np.diff(offsets[first : last + 1])
        rows = np.arange(lengths.sum()) + np.repeat(
            test.start[first:last] - offsets[first:last] + offsets[first], lengths
        )
        same = items[rows] == np.repeat(items[test.target[first:last]], lengths)
        repeated += int(np.count_nonzero(np.bincount(np.repeat(np.arange(last - first), lengths)[same])))
    return repeated / max(1, len(test))


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _features(card: FeatureCard) -> list[tuple[str, str]]:
    rows = [("file", card.file), ("columns", ", ".join(card.columns) or "none")]
    rows.append(("not in the file", f"{card.missing:,} of the log (their features are null)"))
    rows.append(("not in the log", f"{card.unused:,} of the file (left out)"))
    return rows + ([("repeated in the file", f"{card.repeated:,} rows (the first counts)")] if card.repeated else [])


def _quantiles(values: dict[str, int]) -> str:
    names = {"0": "min", "0.5": "median", "1": "max"}
    return ", ".join(f"{names.get(q, f'{float(q):.0%}')} {value:,}" for q, value in values.items())


def _strength(values: dict[str, float | None]) -> str:
    if values["mean"] is None:
        return "none given"
    return f"in {values['share']:.1%} of events; mean {values['mean']:.4g}, {values['min']:g} to {values['max']:g}"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
