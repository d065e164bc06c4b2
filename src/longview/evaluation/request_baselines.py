"""The baselines of ranking on one split: what every ranking model is shown beside."""

from __future__ import annotations

import time
from collections.abc import Callable

from longview.data.dataset import PreparedData
from longview.evaluation.impression_report import ImpressionReport, report_impressions
from longview.evaluation.impressions import RankingProtocol, split_impressions
from longview.models.baselines.rates import Biases, GlobalRate, ItemRate, RequestBaseline, UserRate

REQUEST_BASELINES: dict[str, Callable[[], RequestBaseline]] = {
    "global rate": GlobalRate,
    "item rate": ItemRate,
    "user rate": UserRate,
    "item + user bias": Biases,
}


def evaluate_request_baselines(
    data: PreparedData,
    which: str,
    protocol: RankingProtocol,
    *,
    resamples: int = 1000,
    started: Callable[[str], None] | None = None,
) -> list[ImpressionReport]:
    """Fit each baseline on the training requests of `data` and evaluate it on a split.

    `started` is called with each name before its baseline is fitted.
    """
    train = split_impressions(data, "train", protocol)
    shown = split_impressions(data, "validation" if which == "validation" else "test", protocol)
    reports = []
    for name, make in REQUEST_BASELINES.items():
        if started is not None:
            started(name)
        begin = time.perf_counter()
        baseline = make().fit(data, protocol.tasks, train.requests, train.candidates)
        predictions = baseline.predict(data, shown.requests, shown.candidates)
        reports.append(
            report_impressions(
                shown,
                predictions,
                data,
                which,
                protocol,
                name=name,
                seconds=time.perf_counter() - begin,
                resamples=resamples,
            )
        )
    return reports
