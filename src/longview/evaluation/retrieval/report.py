"""What a retrieval evaluation reports: metrics, intervals over queries and over classes, and the classes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.evaluation.intervals import CELLS, bootstrap
from longview.evaluation.metrics.retrieval import hit, reciprocal_rank
from longview.evaluation.retrieval.ranking import RetrievalRanks

Values = npt.NDArray[np.floating[Any]]


def retrieval_metrics(ranks: RetrievalRanks, recall_at: Sequence[int]) -> dict[str, Values]:
    """Return every metric by name, one value a query: `recall@K`, `map@r`, `r_precision`, `mrr`.

    The mean of `recall@K` over queries is the CMC curve at K.
    """
    values: dict[str, Values] = {f"recall@{k}": hit(ranks.first_rank, k) for k in recall_at}
    return values | {
        "map@r": ranks.map_at_r,
        "r_precision": ranks.r_precision,
        "mrr": reciprocal_rank(ranks.first_rank),
    }


def retrieval_report(
    ranks: RetrievalRanks, recall_at: Sequence[int], protocol: str, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the report of a retrieval, ready for JSON.

    `metrics` are means over queries. `intervals` (95 %) draw queries again: how much another draw of images of these
    classes would move them. `class_intervals` draw whole classes: how much *other classes* would, which is wider
    where classes differ, and the one to use for a claim about unseen classes. `queries_without_relevant` counts
    queries whose class the gallery does not hold (misses); `tied_first` those whose two best images score the same.
    """
    values = retrieval_metrics(ranks, recall_at)
    report: dict[str, Any] = {
        "protocol": protocol,
        "queries": len(ranks),
        "gallery": len(ranks.gallery_labels),
        "classes": len(np.unique(ranks.labels)),
        "queries_without_relevant": int(ranks.absent.sum()),
        "classes_without_relevant": _names(ranks, ranks.labels[ranks.absent]),
        "tied_first": int(ranks.tied.sum()),
        "metrics": {name: float(column.mean()) for name, column in values.items()},
    }
    if resamples:
        report["intervals"] = query_intervals(values, resamples=resamples, seed=seed)
        report["class_intervals"] = class_intervals(values, ranks.labels, resamples=resamples, seed=seed)
    return report


def query_intervals(values: dict[str, Values], *, resamples: int = 1000, seed: int = 0) -> dict[str, list[float]]:
    """Return the 95 % percentile interval of the mean of each metric when queries are drawn again."""
    table = np.stack(list(values.values()), axis=1)
    distinct, which = np.unique(table, axis=0, return_inverse=True)
    columns = lambda rows: {name: distinct[rows.astype(np.int64), i] for i, name in enumerate(values)}
    found = bootstrap(which.reshape(-1).astype(np.float64), columns, resamples=resamples, seed=seed)
    return {name: list(ends) for name, ends in found.items()}


def class_intervals(
    values: dict[str, Values], labels: npt.NDArray[np.int64], *, resamples: int = 1000, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95 % percentile interval of the mean of each metric when classes are drawn again, with their queries.

    The mean stays one over queries: the sum over the drawn classes divided by the number of their queries.
    """
    classes, which = np.unique(labels, return_inverse=True)
    sizes = np.bincount(which)
    sums = np.stack([np.bincount(which, weights=column) for column in values.values()], axis=1)
    generator = np.random.default_rng(seed)
    share = np.full(len(classes), 1 / len(classes))
    step = max(1, CELLS // len(classes))
    means = []
    for begin in range(0, resamples, step):
        drawn = generator.multinomial(len(classes), share, size=min(step, resamples - begin))
        means.append((drawn @ sums) / (drawn @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(values)}


def per_class(ranks: RetrievalRanks, recall_at: Sequence[int] = (1,)) -> list[dict[str, Any]]:
    """Return one row a class of the queries, worst MAP@R first, then by name.

    A row holds `class`, `queries`, `gallery` (its images there, a query's own included) and the mean of each metric
    with, where there are two queries or more, its standard error `metric_se`.
    """
    classes, which = np.unique(ranks.labels, return_inverse=True)
    sizes = np.bincount(which)
    held = np.bincount(ranks.gallery_labels, minlength=len(ranks.names))
    rows: list[dict[str, Any]] = [
        {"class": ranks.names[number], "queries": int(size), "gallery": int(held[number])}
        for number, size in zip(classes, sizes, strict=True)
    ]
    for name, column in retrieval_metrics(ranks, recall_at).items():
        mean = np.bincount(which, weights=column) / sizes
        spread = np.bincount(which, weights=(column - mean[which]) ** 2)
        error = np.sqrt(spread / np.maximum(sizes - 1, 1) / sizes)
        for row, value, size, deviation in zip(rows, mean, sizes, error, strict=True):
            row[name] = float(value)
            row[f"{name}_se"] = float(deviation) if size > 1 else None
    return sorted(rows, key=lambda row: (row["map@r"], row["class"]))


def _names(ranks: RetrievalRanks, labels: npt.NDArray[np.int64]) -> list[str]:
    return [ranks.names[number] for number in np.unique(labels)]
