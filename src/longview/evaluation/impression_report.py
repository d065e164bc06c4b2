"""The result of one evaluation of ranking requests, and several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.impressions import (
    Impressions,
    Predictions,
    RankingProtocol,
    bootstrap_users,
    measure,
    one_class_users,
    reliabilities,
)

LOWER_IS_BETTER = ("ne", "logloss", "ece", "mae", "rmse")


@dataclass(frozen=True)
class ImpressionReport:
    """What predictions for the candidates of one split are worth, and everything needed to say what that means.

    `metrics` by name (`like.ne`, `like.auc`, `rating.mae`, and the means over binary tasks `ne`, `auc`, …);
    `intervals` their 95 % bootstrap intervals over users; `reliability` by binary task bins of `[predicted, observed,
    count]`; `tasks` what is predicted; `one_class` by task the users and impressions that GAUC leaves out;
    `impressions` a hash of candidates and labels. Two reports can be compared only where that is equal.
    """

    name: str
    data: str
    split: str
    protocol: str
    fingerprint: str
    impressions: str
    num_users: int
    num_items: int
    num_requests: int
    num_candidates: int
    seconds: float
    metrics: dict[str, float]
    tasks: list[dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    reliability: dict[str, list[list[float]]] = field(default_factory=dict)
    one_class: dict[str, dict[str, int]] = field(default_factory=dict)
    kind: str = "ranking"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        values = asdict(self)
        values["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImpressionReport:
        """Undo `to_dict`."""
        ends = {name: (low, high) for name, (low, high) in values.get("intervals", {}).items()}
        return cls(**{**values, "intervals": ends})


def report_impressions(
    shown: Impressions,
    predictions: Predictions,
    data: PreparedData,
    split: str,
    protocol: RankingProtocol,
    *,
    name: str,
    seconds: float,
    resamples: int,
) -> ImpressionReport:
    """Return the report of `predictions` (n, tasks); with no `resamples` metrics alone, the form for early stopping."""
    tables = reliabilities(shown, predictions) if resamples else {}
    return ImpressionReport(
        name=name,
        data=data.meta.name,
        split=split,
        protocol=describe(data, split, protocol),
        fingerprint=data.fingerprint,
        impressions=shown.fingerprint,
        num_users=len(set(shown.requests.users.tolist())),
        num_items=data.num_items,
        num_requests=len(shown.requests),
        num_candidates=len(shown),
        seconds=round(seconds, 4),
        metrics=measure(shown, predictions),
        tasks=[{**task.model_dump(), "kind": task.kind} for task in protocol.tasks],
        intervals=bootstrap_users(shown, predictions, resamples=resamples) if resamples else {},
        reliability={task: [list(one) for one in table] for task, table in tables.items()},
        one_class=one_class_users(shown) if resamples else {},
    )


def describe(data: PreparedData, split: str, protocol: RankingProtocol) -> str:
    """Return in words how the figures of a report came about."""
    spec = data.split.spec
    if spec.kind == "leave-last-out":
        part = f"the one {split} event of each user is ranked"
    else:
        part = f"every event of the {split} period (cuts at the {spec.quantile} quantile of time) is ranked"
    sampled = (
        f", beside {protocol.sampled} sampled ones a request to which nothing happened" if protocol.sampled else ""
    )
    time = "strictly before the request's time" if data.meta.has_time else "before the request"
    return (
        f"{spec.kind}: {part} as a candidate{sampled}; requests of up to {protocol.size} consecutive events of a user "
        f"share the history {time}, what happened in it included; candidates see neither each other nor any label; "
        "normalised entropy against the rate of the evaluated candidates; GAUC over users with both classes, weighted "
        "by candidates"
    )


def lower_is_better(metric: str) -> bool:
    """Return whether a smaller value of `metric` (`ne`, `like.auc`, `rating.mae`, `ndcg@10`) is the better one.

    Example:
        >>> [lower_is_better(name) for name in ("ne", "like.auc", "rating.mae", "ndcg@10")]
        [True, False, True, False]
    """
    return metric.rpartition(".")[2] in LOWER_IS_BETTER


def leading_metric(metrics: Mapping[str, float]) -> str:
    """Return the metric that orders models: the mean NE, else the first of which less is better, else nothing.

    Example:
        >>> leading_metric({"like.auc": 0.7, "ne": 0.9}), leading_metric({"stars.mae": 0.7})
        ('ne', 'stars.mae')
    """
    return next((name for name in ("ne", *metrics) if name in metrics and lower_is_better(name)), "")


def compare_impressions(reports: Sequence[ImpressionReport]) -> list[dict[str, Any]]:
    """Return one row a report, lowest mean NE (or first error) first: its name and its metrics by task.

    The means over tasks are left out where there is one binary task, whose figures they repeat.

    Raises:
        InputError: the reports are of different impressions, so comparing them would mislead.
    """
    if len({(r.impressions, r.split) for r in reports}) > 1:
        found = "; ".join(f"{r.name}: {r.split}, impressions {r.impressions}" for r in reports)
        raise InputError(f"these results are not comparable, evaluate all on the same requests ({found})")
    first = leading_metric(reports[0].metrics)
    ordered = sorted(reports, key=lambda r: r.metrics.get(first, float("inf")))
    columns = shown_metrics([r.metrics for r in reports])
    return [{"name": r.name} | {c: r.metrics[c] for c in columns if c in r.metrics} for r in ordered]


def shown_metrics(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the metrics worth a column: those of tasks without `rmse` and `logloss`; means where they say more."""
    names = list(dict.fromkeys(name for each in metrics for name in each))
    several = sum(name.endswith(".auc") for name in names) > 1
    kept = [n for n in names if "." in n and n.rpartition(".")[2] not in ("rmse", "logloss")]
    return kept + [n for n in ("ne", "auc", "gauc") if several and n in names]
