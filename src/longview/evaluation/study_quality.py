"""The quality of the cells of a study, user by user, and its uncertainty over users and seeds together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.errors import InputError
from longview.evaluation.metrics import accuracy

Floats = npt.NDArray[np.float64]
Known = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]  # labels of a cell, and the record of one seed

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 100  # resamples held at a time
METHOD = (
    f"{LEVEL:.0%} percentile intervals of {RESAMPLES:,} resamples: the test users are drawn again with replacement, "
    "the same for all cells, and so are the seeds of each cell, independently"
)


@dataclass(frozen=True)
class Setting:
    """The runs of one configuration: `labels`, a record a seed, and `values` (seeds, users) of the metric."""

    labels: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    values: Floats

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n − 1), 0 for one seed."""
        each = self.values.mean(1).tolist()
        return stdev(each) if len(each) > 1 else 0.0

    def average(self, group: str, name: str) -> float:
        """Return the mean over the seeds of `record[group][name]`, NaN where `record[group]` is None."""
        if any(record[group] is None for record in self.records):
            return math.nan
        return fmean(float(record[group][name]) for record in self.records)

    def costs(self) -> dict[str, dict[str, float] | None]:
        """Return the mean `flops` and `seconds`; the latter are None where no time was measured."""
        found: dict[str, dict[str, float] | None] = {}
        for group in ("flops", "seconds"):
            values = {name: self.average(group, name) for name in ("step", "training", "request")}
            found[group] = values if all(math.isfinite(value) for value in values.values()) else None
        return found


def settings_of(metric: str, known: Known) -> list[Setting]:
    """Gather the records by their labels, in order.

    Raises:
        InputError: a metric that ranks do not give, or records of different test users.
    """
    groups: dict[tuple[Any, ...], tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for labels, record in known:
        groups.setdefault(tuple(labels.values()), (labels, []))[1].append(record)
    found = [
        Setting(labels, records, np.stack([user_values(metric, unpack(r["ranks"])) for r in records]))
        for labels, records in groups.values()
    ]
    if len({setting.values.shape[1] for setting in found}) > 1:
        raise InputError("cells of this study were evaluated on different test users; run it in another directory")
    return found


def user_values(metric: str, ranks: Floats) -> Floats:
    """Return the metric of each user from the rank of the target.

    Raises:
        InputError: not a metric of ranks.
    """
    name, _, k = metric.partition("@")
    if name not in ("hr", "ndcg") or not k.isdigit() or int(k) < 1:
        raise InputError(f"metric {metric!r}: a study compares hr@K or ndcg@K")
    return np.asarray(accuracy(ranks, [int(k)])[metric], dtype=np.float64)


def resampled_means(values: Sequence[Floats], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return (len(values), resamples) means when users and seeds are drawn again.

    Args:
        values: (seeds, users) of each setting; the users are the same ones throughout.
        resamples: how many times.
        seed: equal seeds give equal draws.
    """
    generator = np.random.default_rng(seed)
    users = values[0].shape[1]
    stacked = np.concatenate(values)
    means = np.empty((len(stacked), resamples))
    for begin in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - begin)
        drawn = generator.multinomial(users, np.full(users, 1 / users), size=size)
        means[:, begin : begin + size] = stacked @ drawn.T / users
    found, first = np.empty((len(values), resamples)), 0
    for place, each in enumerate(values):
        rows = generator.integers(len(each), size=(len(each), resamples))
        found[place] = np.take_along_axis(means[first : first + len(each)], rows, 0).mean(0)
        first += len(each)
    return found


def interval(resampled: npt.NDArray[Any]) -> list[float | None]:
    """Return the ends of the percentile interval; None where resamples have no value (a ratio of nothing)."""
    if not np.isfinite(resampled).all():
        return [None, None]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return [float(low), float(high)]


def finite(value: float) -> float | None:
    """Return `value`, or None where it is no number."""
    return float(value) if math.isfinite(value) else None


def by_component(records: Sequence[Mapping[str, Any]], oracle: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return HR@10 of the targets that each component of simulated data made, beside the best possible."""
    if oracle is None:
        return {}
    component = unpack(oracle["component"]).astype(int)
    best = unpack(oracle["windows"]["all"]["hr@10"])
    hits = np.mean([user_values("hr@10", unpack(record["ranks"])) for record in records], axis=0)
    found = {}
    for code, name in enumerate(oracle["names"]):
        ours = component == code
        if ours.any():
            count, reached = int(ours.sum()), float(hits[ours].mean())
            found[name] = {"targets": count, "hr@10": reached, "best_hr@10": float(best[ours].mean())}
    return found


def best_possible(metric: str, oracle: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the best mean that a model can reach which sees so many newest events ("all": everything)."""
    if oracle is None or metric not in oracle["windows"]["all"]:
        return {}
    return {window: float(unpack(of[metric]).mean()) for window, of in oracle["windows"].items()}


def pack(values: npt.NDArray[Any]) -> str:
    """Return numbers as one line of text, so that a JSON file of many stays readable; `inf` where infinite."""
    return " ".join(f"{value:.6g}" for value in values.tolist())


def unpack(text: str) -> Floats:
    """Undo `pack`."""
    return np.array([float(word) for word in text.split()])
