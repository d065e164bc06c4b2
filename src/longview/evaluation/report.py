"""The result of one evaluation, and several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from longview.errors import InputError


@dataclass(frozen=True)
class Report:
    """What a model scored on one split, and everything needed to say what that means.

    `metrics` by name (`hr@10`, `ndcg@10`, `mrr`, `coverage@10`, ...); `intervals` the 95 % bootstrap interval
    over users of the accuracy metrics; `groups` the accuracy by history length; `cold_share` the share of
    targets without a training event, which count as misses; `seconds` the time of the whole evaluation.
    Two reports can be compared only where `fingerprint`, `split` and `exclude_seen` are equal.
    """

    name: str
    data: str
    split: str
    protocol: str
    fingerprint: str
    num_users: int
    num_items: int
    cold_share: float
    exclude_seen: bool
    seconds: float
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        values = asdict(self)
        values["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Undo `to_dict`."""
        ends = {name: (low, high) for name, (low, high) in values.get("intervals", {}).items()}
        return cls(**{**values, "intervals": ends})


COLUMNS = ("hr@10", "ndcg@10", "mrr", "coverage@10", "novelty@10", "popular_share@10", "new_share@10")


def compare(reports: Sequence[Report], columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
    """Return one row a report, best NDCG@10 first: its name, and the `columns` it has.

    Raises:
        InputError: the reports are of different data, splits or protocols, so comparing them would mislead.
    """
    settings = {(r.fingerprint, r.split, r.exclude_seen) for r in reports}
    if len(settings) > 1:
        found = "; ".join(f"{r.name}: data {r.fingerprint}, {r.split}, exclude_seen={r.exclude_seen}" for r in reports)
        raise InputError(f"these results are not comparable, evaluate all on the same data and protocol ({found})")
    ordered = sorted(reports, key=lambda r: r.metrics.get("ndcg@10", 0.0), reverse=True)
    return [{"name": r.name} | {c: r.metrics[c] for c in columns if c in r.metrics} for r in ordered]
