"""What a study of metric learning says: every policy with intervals, against the reference, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

Known = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""(labels, record) of cells: `regime`, `batch`, `memory` (a share, or None for none) and `policy`."""

METRICS = ("recall@1", "map@r")
PLACE = ("regime", "batch", "memory")
# Two-sided 95 % quantiles of Student's t by degrees of freedom; 1.96 beyond.
# fmt: off
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
# fmt: on


def metric_summary(known: Known, times: Known, *, reference: str) -> dict[str, Any]:
    """Return the rows of a study, and in how many places each policy wins, loses or neither.

    A row is one policy in one place (regime, batch, memory): `metrics`, each with `mean`, the `interval` of it over
    seeds (95 %, Student's t), the values by `seed`, and against `reference` in the same place the `difference`, paired
    by seed, with its `difference_interval` and the `verdict`: `better` or `worse` where the two intervals of the means
    do not overlap, else `even`. The same against a policy without a memory, with names that end in `_to_none`. Such a
    policy is itself compared with the reference in the memory where that is best, which `against` names. `drift` is
    what the probe showed, averaged over seeds. `step_seconds` and bytes are those measured alone on the device.
    """
    rows = [_row(labels, records) for labels, records in _grouped(known)]
    measured = {(*_place(labels), labels["policy"]): record for labels, record in times}
    for row in rows:
        alone = measured.get((*_place(row), row["policy"]))
        if alone is not None:
            row["step_seconds"], row["peak_bytes"] = alone["seconds"], alone["peak_bytes"]
    for row in rows:
        _compare(row, [r for r in rows if r["policy"] == reference and r is not row and _same_place(r, row)])
        if row["memory"] is not None:
            _compare(row, [r for r in rows if r["memory"] is None and _same_place(r, row)], "_to_none")
    return {
        "reference": reference,
        "intervals": "95 %, Student's t over seeds; differences are paired by seed",
        "rows": rows,
        "verdicts": _verdicts(rows, "verdict"),
        "verdicts_to_none": _verdicts(rows, "verdict_to_none"),
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of `values` by Student's t, or None for fewer than two.

    Example:
        >>> [round(end, 3) for end in mean_interval([0.1, 0.2, 0.3])]
        [-0.048, 0.448]
    """
    if len(values) < 2:
        return None
    quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _grouped(known: Known) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Return the records of each kind of cell, over seeds, in the order of the first."""
    found: dict[tuple[Any, ...], tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for labels, record in known:
        found.setdefault((*_place(labels), labels["policy"]), (labels, []))[1].append(record)
    return list(found.values())


def _row(labels: Mapping[str, Any], records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of one kind of cell, before it is compared."""
    records = sorted(records, key=lambda record: record["seed"])
    return {
        **labels,
        "seeds": [record["seed"] for record in records],
        "metrics": {
            name: _spread([record["metrics"][name] for record in records]) for name in METRICS
        },
        "memory_bytes": records[0]["memory_bytes"],
        "drift": _mean_drift([record["drift"] for record in records]),
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, Any]:
    ends = mean_interval(values)
    return {
        "mean": _short(fmean(values)),
        "interval": None if ends is None else [_short(end) for end in ends],
        "by_seed": [_short(value) for value in values],
    }


def _mean_drift(drifts: list[list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return what the probe showed at each look, by age, averaged over seeds."""
    found = []
    for looks in zip(*drifts, strict=False):
        ages = [look["by_age"] for look in looks]
        found.append(
            {
                "step": looks[0]["step"],
                "mean_age": _short(fmean(look["memory"]["mean_age"] for look in looks)),
                "share_of_loss_from_memory": _short(fmean(look["share_of_loss_from_memory"] or 0.0 for look in looks)),
                "gain": {name: _short(fmean(look["gain"][name] for look in looks)) for name in ("mean", "std")},
                "by_age": [
                    {key: _short(fmean(row[key] for row in rows)) for key in rows[0]}
                    for rows in zip(*ages, strict=False)
                ],
            }
        )
    return found


def _compare(row: dict[str, Any], others: list[dict[str, Any]], ending: str = "") -> None:
    """Add the difference to the other row of the same place; where there are several, to the best of them."""
    if not others:
        return
    for name, own in row["metrics"].items():
        best = max(others, key=lambda r: r["metrics"][name]["mean"])
        own |= {f"{key}{ending}": value for key, value in difference(row, best, name).items()}
        if len(others) > 1:
            own["against"] = best["memory"]


def difference(row: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the difference of two rows in a metric, its interval over the seeds both have, and the verdict."""
    own, theirs = row["metrics"][name], other["metrics"][name]
    known = dict(zip(other["seeds"], theirs["by_seed"], strict=True))
    paired = [value - known[seed] for seed, value in zip(row["seeds"], own["by_seed"], strict=True) if seed in known]
    ends = mean_interval(paired)
    return {
        "difference": _short(own["mean"] - theirs["mean"]),
        "difference_interval": None if ends is None else [_short(end) for end in ends],
        "verdict": _verdict(own["interval"], theirs["interval"]),
    }


def _verdict(own: Sequence[float] | None, theirs: Sequence[float] | None) -> str:
    if own is None or theirs is None:
        return "unknown"
    return "better" if own[0] > theirs[1] else "worse" if own[1] < theirs[0] else "even"


def _verdicts(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, dict[str, int]]]:
    """Return, for each policy and metric, in how many places each verdict was given."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        for name, own in row["metrics"].items():
            if key in own:
                counts = found.setdefault(row["policy"], {}).setdefault(name, {"better": 0, "even": 0, "worse": 0})
                counts[own[key]] = counts.get(own[key], 0) + 1
    return found


def _place(labels: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in PLACE)


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two rows are comparable; a row without a memory is so at every size of it."""
    same = (one["regime"], one["batch"]) == (other["regime"], other["batch"])
    return same and (one["memory"] == other["memory"] or None in (one["memory"], other["memory"]))


def _short(value: float) -> float:
    return float(f"{value:.5g}")
