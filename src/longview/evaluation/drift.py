"""What smaller item tables cost models of several seeds: the change of each metric on test, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.metrics import hit, ndcg
from longview.evaluation.quantised import QuantisedItems, check_name
from longview.evaluation.ranking import rank_targets

BF16_BYTES = 2
K = 10
RESAMPLES = 1000
DRAWS = 1 << 22  # numbers of a block of resamples
Values = npt.NDArray[np.floating[Any]]


def drift_of_seeds(
    models: Iterable[Any], data: PreparedData, names: Sequence[str], *, device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """Return, for each of `names`, what that table costs models of one configuration that differ in their seed.

    Each target of the test split is ranked by every model with its own table and with each smaller one. A metric's
    `relative` is the change of its mean over seeds and users as a share of it, `seeds` that of each model, `interval`
    the 95 % bootstrap interval over users, who are drawn with all their seeds and both tables. Only one model is held
    at a time.

    Args:
        models: retrieval models, on `device`.
        data: the data set.
        names: of tables, `int8` or `int4`.
        device: where to rank.

    Raises:
        InputError: no such table; no models.
    """
    for name in names:
        check_name(name)
    full: list[dict[str, Values]] = []
    other: dict[str, list[dict[str, Values]]] = {name: [] for name in names}
    sizes: dict[str, dict[str, Any]] = {}
    for model in models:
        full.append(_by_user(model, data, device))
        for name in names:
            small = QuantisedItems.of(model, name)
            other[name].append(_by_user(small.model, data, device))
            sizes[name] = _sizes(small, model.embedding.items.weight)
    if not full:
        raise InputError("drift of quantised tables: there is no model")
    return [{"tables": name, **sizes[name], "metrics": _changes(full, other[name])} for name in names]


def _by_user(model: Any, data: PreparedData, device: torch.device | str) -> dict[str, Values]:
    """Return HR and NDCG of each user's test target, (users,) each."""
    ranks = rank_targets(model, data, data.split.test, device=device, exclude_seen=not data.meta.repeats)
    return {f"hr@{K}": hit(ranks.rank, K), f"ndcg@{K}": ndcg(ranks.rank, K)}


def _sizes(small: QuantisedItems, weight: torch.Tensor) -> dict[str, Any]:
    bfloat16 = weight.numel() * BF16_BYTES
    return {"bytes": small.bytes, "bfloat16_bytes": bfloat16, "times_smaller": bfloat16 / small.bytes}


def _changes(full: Sequence[Mapping[str, Values]], other: Sequence[Mapping[str, Values]]) -> dict[str, Any]:
    found = {}
    for name in full[0]:
        before, after = (np.stack([one[name] for one in some]) for some in (full, other))  # (seeds, users)
        found[name] = {
            "full": float(before.mean()),
            "quantised": float(after.mean()),
            "relative": _share(after.mean(), before.mean()),
            "interval": _interval(before.mean(0), after.mean(0)),
            "seeds": [_share(b, a) for a, b in zip(before.mean(1), after.mean(1), strict=True)],
        }
    return found


def _share(after: float, before: float) -> float | None:
    return float(after / before) - 1 if before else None


def _interval(before: Values, after: Values) -> list[float] | None:
    """Return the 95 % percentile interval of the relative change when users (n,) are drawn again."""
    if not before.any():
        return None
    users, generator, found = len(before), np.random.default_rng(0), []
    table = np.stack([before, after], axis=1)
    step = max(1, DRAWS // users)
    for begin in range(0, RESAMPLES, step):
        drawn = generator.integers(users, size=(min(step, RESAMPLES - begin), users))
        sums = table[drawn].sum(1)
        found.append(sums[:, 1] / sums[:, 0] - 1)
    return [float(end) for end in np.nanquantile(np.concatenate(found), [0.025, 0.975])]
