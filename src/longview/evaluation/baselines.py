"""The baselines on one split: what every model is shown beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.evaluate import Which, evaluate
from longview.evaluation.report import Report
from longview.models.baselines import BASELINES, build


@dataclass(frozen=True)
class BaselineResults:
    """`reports` of the baselines that ran, `fit_seconds` of each, and by name why others were `skipped`."""

    reports: list[Report]
    fit_seconds: dict[str, float]
    skipped: dict[str, str]


def evaluate_baselines(
    data: PreparedData,
    which: Which,
    *,
    names: Sequence[str] = tuple(BASELINES),
    exclude_seen: bool | None = None,
    resamples: int = 1000,
    started: Callable[[str], None] | None = None,
) -> BaselineResults:
    """Fit each baseline on the training rows of `data` and evaluate it on a split.

    A baseline that the data rules out (recent popularity without time, EASE on a large catalogue) is skipped, and
    the reason kept. `started` is called with each name before its baseline is fitted.

    Raises:
        InputError: an unknown name or split, or an empty evaluation set.

    Example:
        >>> results = evaluate_baselines(PreparedData.open("data/ml-1m"), "test")  # doctest: +SKIP
        >>> [(report.name, report.metrics["hr@10"]) for report in results.reports]  # doctest: +SKIP
    """
    reports, seconds, skipped = [], {}, {}
    for name, baseline in [(name, build(name)) for name in names]:  # a wrong name fails before any work
        if started is not None:
            started(name)
        begin = time.perf_counter()
        try:
            baseline.fit(data)
        except InputError as reason:
            skipped[name] = str(reason)
            continue
        seconds[name] = round(time.perf_counter() - begin, 3)
        reports.append(evaluate(baseline, data, which, exclude_seen=exclude_seen, resamples=resamples, name=name))
    return BaselineResults(reports, seconds, skipped)
