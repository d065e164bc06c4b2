"""Evaluate a recommender on one split of a prepared data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError, suggestion
from longview.evaluation.groups import by_history
from longview.evaluation.intervals import bootstrap
from longview.evaluation.metrics import accuracy, list_metrics
from longview.evaluation.ranking import rank_targets
from longview.evaluation.report import Report
from longview.models.interface import Recommender

KS = (1, 5, 10, 20, 50, 100)
LIST_LENGTH = 10

Which = Literal["validation", "test"]


def evaluate(
    model: Recommender,
    data: PreparedData,
    which: Which,
    *,
    ks: Sequence[int] = KS,
    exclude_seen: bool | None = None,
    device: torch.device | str | None = None,
    resamples: int = 1000,
    name: str | None = None,
) -> Report:
    """Rank every target of a split among the whole catalogue and report accuracy, lists and intervals.

    Args:
        model: anything with vectors or scores (`longview.models.interface`).
        data: the data set; its split says which events are targets.
        which: `validation` to select and stop early, `test` once a run.
        ks: the list lengths of HR@K, NDCG@K and MRR@K.
        exclude_seen: leave out what the user has already had, other than the target itself (None: yes, unless the data
            set says that items come again by design, `Meta.repeats`).
        device: where batches go; by default where the model's parameters are.
        resamples: bootstrap resamples; 0 reports accuracy only, without intervals, groups and list metrics: the
            quick form for early stopping.
        name: what the report calls the model, by default its class.

    Raises:
        InputError: no such split, an empty one, or a K below 1.

    Example:
        >>> report = evaluate(model, data, "test")  # doctest: +SKIP
        >>> report.metrics["hr@10"], report.intervals["hr@10"]  # doctest: +SKIP
    """
    if which not in ("validation", "test"):
        raise InputError(
            f"no split {which!r}{suggestion(str(which), ['validation', 'test'])}: choose validation or test"
        )
    if not ks or min(ks) < 1:
        raise InputError(f"ks={list(ks)}: every K must be at least 1, and there must be one")
    begin = time.perf_counter()
    exclude_seen = not data.meta.repeats if exclude_seen is None else exclude_seen
    chosen = data.split.validation if which == "validation" else data.split.test
    ranks = rank_targets(
        model, data, chosen, device=device, exclude_seen=exclude_seen, list_length=LIST_LENGTH if resamples else 0
    )
    metrics = {key: float(values.mean()) for key, values in accuracy(ranks.rank, ks).items()}
    if ranks.lists is not None:
        metrics |= list_metrics(ranks.lists, data)
    return Report(
        name=name or type(model).__name__,
        data=data.meta.name,
        split=which,
        protocol=protocol(data, which, exclude_seen),
        fingerprint=data.fingerprint,
        num_users=len(ranks),
        num_items=data.num_items,
        cold_share=float(ranks.cold.mean()),
        exclude_seen=exclude_seen,
        metrics=metrics,
        intervals=bootstrap(ranks.rank, partial(accuracy, ks=ks), resamples=resamples) if resamples else {},
        groups=by_history(ranks) if resamples else [],
        seconds=round(time.perf_counter() - begin, 4),
    )


def protocol(data: PreparedData, which: Which, exclude_seen: bool) -> str:
    """Return in words how the figures of a report came about."""
    seen = "items of the user's history left out" if exclude_seen else "items of the user's history kept in"
    return (
        f"{data.split.describe()}; figures on the {which} targets, ranked among all {data.num_items:,} items, {seen}; "
        "ties get their mean rank, targets without a training event count as misses"
    )
