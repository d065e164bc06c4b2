"""How long it takes to recommend to everybody, end to end: read histories, encode, rank, look ids up."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.serving.recommender import Recommender


def bench_recommend(
    run: Path, *, k: int = 10, repeats: int = 5, data: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Time `Recommender.recommend` for all users of the run's data set.

    `seconds` is the median of `repeats` calls after a first one (`first_seconds`, which also opens the data set);
    `load_seconds` is loading the model.

    Raises:
        InputError: not a run directory, its data set is gone, or fewer than one repeat.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}: at least 1")
    begin = time.perf_counter()
    recommender = Recommender.load(run, data=data, device=device)
    load_seconds = time.perf_counter() - begin
    first, *others = (_seconds(recommender, k) for _ in range(repeats + 1))
    users = recommender.data.num_users
    return {
        "benchmark": "recommend",
        "seconds": round(median(others), 4),
        "users_per_second": round(users / median(others)),
        "first_seconds": round(first, 4),
        "load_seconds": round(load_seconds, 4),
        "all_seconds": [round(s, 4) for s in others],
        "settings": {"k": k, "device": device, "exclude_seen": True},
        "data": {
            "name": recommender.data.meta.name,
            "users": users,
            "items": recommender.data.num_items,
            "events": recommender.data.num_events,
            "fingerprint": recommender.data.fingerprint,
        },
        "model": None if recommender.run is None else recommender.run.config.model.model_dump(mode="json"),
        "environment": environment(),
    }


def _seconds(recommender: Recommender, k: int) -> float:
    begin = time.perf_counter()
    recommender.recommend(k=k)
    if recommender.device.type == "cuda":
        torch.cuda.synchronize(recommender.device)
    return time.perf_counter() - begin
