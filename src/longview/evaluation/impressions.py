"""Impressions: every candidate of every request of a split, and what predictions for them are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.data.dataset import PreparedData
from longview.data.labels import Task
from longview.data.requests import Candidates, Part, Requests, candidates_of, sample_items
from longview.evaluation.metrics.calibration import Bin, calibration_error, reliability
from longview.evaluation.metrics.classification import Ordering, entropy, log_losses, normalised_entropy, user_auc
from longview.evaluation.metrics.regression import absolute_error, root_squared_error

Rows = npt.NDArray[np.int64]
Predictions = npt.NDArray[np.float64]

SAMPLE_SEED = 0  # of the candidates drawn beside the real ones: the same for every model and run
FEWEST, WORK = 100, 20_000_000  # resamples of an AUC at least, and impressions its resamples may visit in all


@dataclass(frozen=True)
class RankingProtocol:
    """What is predicted, how many candidates a request has at most, and how many are sampled beside them."""

    tasks: tuple[Task, ...]
    size: int
    sampled: int = 0


@dataclass(frozen=True)
class Impressions:
    """The requests of one part of a split, their candidates, and the tasks that are predicted of each."""

    requests: Requests
    candidates: Candidates
    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """(n, tasks), NaN where unknown."""
        return self.candidates.labels

    @cached_property
    def users(self) -> Rows:
        """(n,) the user of every candidate."""
        return self.requests.users[self.candidates.request]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of candidates and labels: figures compare only where it is the same."""
        digest = hashlib.sha256()
        for values in (*vars(self.requests).values(), self.candidates.items, self.labels):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def constant(self, values: Sequence[float]) -> Predictions:
        """Return (n, tasks) predictions, the same of every candidate."""
        return np.tile(np.asarray(values, np.float64), (len(self), 1))

    def known(self, task: int) -> tuple[npt.NDArray[np.bool_], Predictions]:
        """Return which candidates have a label of the task, (n,), and those labels in float64."""
        known = ~np.isnan(self.labels[:, task])
        return known, self.labels[known, task].astype(np.float64)


def split_impressions(data: PreparedData, part: Part, protocol: RankingProtocol) -> Impressions:
    """Return the impressions of one part of the split of `data`.

    Raises:
        InputError: there is none.
    """
    requests = Requests.of(data, part, protocol.size)
    drawn = sample_items(data, requests, protocol.sampled, np.random.default_rng(SAMPLE_SEED))
    return Impressions(requests, candidates_of(data, requests, protocol.tasks, drawn), protocol.tasks)


def measure(shown: Impressions, predictions: Predictions) -> dict[str, float]:
    """Return every metric that is defined, as `task.metric`; `ne`, `auc`, … alone are means over the binary tasks.

    Binary tasks have `ne`, `auc`, `gauc`, `logloss` and `ece`; regression tasks `mae` and `rmse`. A metric that is not
    defined, as where a task has one class only, is left out, and out of the mean.
    """
    found: dict[str, float] = {}
    for number, task in enumerate(shown.tasks):
        known, labels = shown.known(number)
        given = predictions[known, number]
        if task.kind == "binary":
            values = {
                "ne": normalised_entropy(labels, given),
                "auc": Ordering.of(given).auc(labels),
                "gauc": user_auc(labels, given, shown.users[known]).gauc,
                "logloss": float(log_losses(labels, given).mean()) if len(labels) else float("nan"),
                "ece": calibration_error(labels, given),
            }
        else:
            values = {"mae": absolute_error(labels, given), "rmse": root_squared_error(labels, given)}
        found |= {f"{task.name}.{name}": value for name, value in values.items() if np.isfinite(value)}
    binary = [task.name for task in shown.tasks if task.kind == "binary"]
    for name in ("ne", "auc", "gauc", "logloss", "ece"):
        each = [found[f"{task}.{name}"] for task in binary if f"{task}.{name}" in found]
        if each:
            found[name] = float(np.mean(each))
    return found


def reliabilities(shown: Impressions, predictions: Predictions) -> dict[str, list[Bin]]:
    """Return the reliability table of every binary task by name."""
    tables = {}
    for number, task in enumerate(shown.tasks):
        if task.kind == "binary":
            known, labels = shown.known(number)
            tables[task.name] = reliability(labels, predictions[known, number])
    return tables


def one_class_users(shown: Impressions) -> dict[str, dict[str, int]]:
    """Return how many `users` and `impressions` of each binary task GAUC leaves out, as those have one class only."""
    found = {}
    for number, task in enumerate(shown.tasks):
        if task.kind == "binary":
            known, labels = shown.known(number)
            each = user_auc(labels, np.zeros(len(labels)), shown.users[known])
            found[task.name] = {"users": each.num_excluded, "impressions": each.excluded_impressions}
    return found


def bootstrap_users(
    shown: Impressions, predictions: Predictions, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of every metric but `ece` and `rmse` when users are drawn again with replacement.

    Impressions of one user are alike, so users are drawn, not impressions. An AUC of many impressions is resampled
    less often (at least 100 times). A resample in which a metric is not defined does not count.
    """
    names, user = np.unique(shown.users, return_inverse=True)
    user = user.reshape(-1)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    found: dict[str, Any] = {}
    for number, task in enumerate(shown.tasks):
        known, labels = shown.known(number)
        if not len(labels):
            continue
        sums = _Sums(drawn.astype(np.float64), user[known], len(names))
        given = predictions[known, number]
        each = _binary(sums, labels, given) if task.kind == "binary" else {"mae": sums.mean(np.abs(given - labels))}
        found |= {f"{task.name}.{name}": values for name, values in each.items()}
    binary = [task.name for task in shown.tasks if task.kind == "binary"]
    for name in ("ne", "auc", "gauc", "logloss"):
        columns = [found[f"{task}.{name}"] for task in binary if f"{task}.{name}" in found]
        if columns:
            found[name] = np.mean([column[: min(map(len, columns))] for column in columns], axis=0)
    tail = (1 - level) / 2
    ends = {name: values[np.isfinite(values)] for name, values in found.items()}
    return {n: tuple(np.quantile(v, [tail, 1 - tail]).tolist()) for n, v in ends.items() if len(v)}


@dataclass(frozen=True)
class _Sums:
    """Resamples by how often each draws a user: `drawn` (resamples, users); `user` (n,) that of each impression."""

    drawn: Predictions
    user: Rows
    num_users: int

    def of(self, values: npt.NDArray[Any]) -> Predictions:
        """Return the sum of `values` (n,) in each resample, (resamples,)."""
        return self.drawn @ np.bincount(self.user, values, minlength=self.num_users)

    def mean(self, values: npt.NDArray[Any]) -> Predictions:
        """Return the mean of `values` (n,) in each resample."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.of(values) / self.of(np.ones(len(values)))


def _binary(sums: _Sums, labels: Predictions, given: Predictions) -> dict[str, Predictions]:
    loss = sums.mean(log_losses(labels, given))
    within = user_auc(labels, given, sums.user)
    pairs = sums.drawn[:, within.users] * within.impressions
    order, count = Ordering.of(given), min(len(sums.drawn), max(FEWEST, WORK // len(labels)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ne": loss / entropy(sums.mean(labels)),
            "logloss": loss,
            "auc": np.array([order.auc(labels, weights[sums.user]) for weights in sums.drawn[:count]]),
            "gauc": (pairs @ within.auc) / pairs.sum(1),
        }
