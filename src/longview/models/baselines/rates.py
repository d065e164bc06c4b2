"""Baselines of ranking: rates of training, of an item, of a user so far, and item and user biases together.

Each predicts (n, tasks) for the candidates of requests, learning from the training impressions of a data set. What is
said of a user comes from the history of his request, as a model has it, so it is known at that time and leak-free.
Rates are shrunk to the global one by `PRIOR` impressions' worth. Amounts are predicted by means in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from longview.data.batches import jagged_rows
from longview.data.dataset import PreparedData
from longview.data.labels import Task, labels_of
from longview.data.requests import Candidates, Requests

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

PRIOR = 10.0
STEPS = 25  # Newton steps of the biases, at most
CLOSE = 1e-6


class RequestBaseline(Protocol):
    """Learns from training candidates, and predicts (n, tasks) for the candidates of requests."""

    def fit(self, data: PreparedData, tasks: Sequence[Task], requests: Requests, candidates: Candidates) -> Self:
        """Learn from the candidates of training requests and return the baseline itself."""
        ...

    def predict(self, data: PreparedData, requests: Requests, candidates: Candidates) -> Values:
        """Return the predictions."""
        ...


class GlobalRate:
    """The rate, or the mean amount, of training."""

    def fit(self, data: PreparedData, tasks: Sequence[Task], requests: Requests, candidates: Candidates) -> Self:
        self.tasks = tuple(tasks)
        self.mean = np.nanmean(candidates.labels.astype(np.float64), axis=0)
        return self

    def predict(self, data: PreparedData, requests: Requests, candidates: Candidates) -> Values:
        return np.tile(self.mean, (len(candidates), 1))


class ItemRate(GlobalRate):
    """The rate of each item in training."""

    def fit(self, data: PreparedData, tasks: Sequence[Task], requests: Requests, candidates: Candidates) -> Self:
        super().fit(data, tasks, requests, candidates)
        self.rate = _shrunk(candidates.labels, candidates.items, data.num_items, self.mean)
        return self

    def predict(self, data: PreparedData, requests: Requests, candidates: Candidates) -> Values:
        return self.rate[candidates.items]


class UserRate(GlobalRate):
    """The rate of each user in the history of the request."""

    def predict(self, data: PreparedData, requests: Requests, candidates: Candidates) -> Values:
        rows, owner = history_rows(requests)
        rate = _shrunk(labels_of(self.tasks, data, rows), owner, len(requests), self.mean)
        return rate[candidates.request]


class Biases(GlobalRate):
    """A bias of each item plus one of each user: logistic regression of an action, ridge regression of an amount.

    Item biases are fitted on training together with biases of its users; the bias of a user is then fitted anew to the
    history of each request, with the items' held.
    """

    def fit(self, data: PreparedData, tasks: Sequence[Task], requests: Requests, candidates: Candidates) -> Self:
        super().fit(data, tasks, requests, candidates)
        users = requests.users[candidates.request]
        self.items = np.zeros((data.num_items, len(self.tasks)))
        for number in range(len(self.tasks)):
            known = ~np.isnan(candidates.labels[:, number])
            self.items[:, number] = self._fit_task(
                number, candidates.labels[known, number].astype(np.float64), candidates.items[known], users[known], data
            )
        return self

    def predict(self, data: PreparedData, requests: Requests, candidates: Candidates) -> Values:
        """Return each candidate's value by item and user biases, the users' from the history of their request."""
        rows, owner = history_rows(requests)
        labels, items = labels_of(self.tasks, data, rows).astype(np.float64), data.items[rows]
        columns = []
        for number, task in enumerate(self.tasks):
            known = ~np.isnan(labels[:, number])
            start, bias = self._start(number), np.zeros(len(requests))
            offset = start + self.items[items[known], number]
            for _ in range(STEPS):
                step = _newton(
                    task, labels[known, number], offset + bias[owner[known]], owner[known], len(requests), bias
                )
                bias += step
                if np.abs(step).max(initial=0.0) < CLOSE:
                    break
            score = start + self.items[candidates.items, number] + bias[candidates.request]
            columns.append(_sigmoid(score) if task.kind == "binary" else score)
        return np.stack(columns, axis=1)

    def _fit_task(self, number: int, labels: Values, items: Rows, users: Rows, data: PreparedData) -> Values:
        """Return item biases, (num_items,), by turns of Newton steps on items and on users."""
        task, start = self.tasks[number], self._start(number)
        item, user = np.zeros(data.num_items), np.zeros(data.num_users)
        for _ in range(STEPS):
            first = _newton(task, labels, start + item[items] + user[users], items, len(item), item)
            item += first
            second = _newton(task, labels, start + item[items] + user[users], users, len(user), user)
            user += second
            if max(np.abs(first).max(), np.abs(second).max()) < CLOSE:
                break
        return item

    def _start(self, number: int) -> float:
        mean = float(self.mean[number])
        if self.tasks[number].kind == "regression":
            return mean
        rate = min(max(mean, 1e-6), 1 - 1e-6)
        return float(np.log(rate / (1 - rate)))


def history_rows(requests: Requests) -> tuple[Rows, Rows]:
    """Return the event rows of all histories end to end, and the request each belongs to."""
    rows, _ = jagged_rows(requests.start, requests.history_end)
    return rows, np.repeat(np.arange(len(requests)), requests.history_end - requests.start)


def _shrunk(labels: npt.NDArray[Any], group: Rows, num_groups: int, mean: Values) -> Values:
    """Return (num_groups, tasks): the mean label of each group and `PRIOR` labels of `mean`."""
    columns = []
    for number in range(labels.shape[1]):
        known = ~np.isnan(labels[:, number])
        count = np.bincount(group[known], minlength=num_groups)
        total = np.bincount(group[known], labels[known, number].astype(np.float64), minlength=num_groups)
        columns.append((total + PRIOR * mean[number]) / (count + PRIOR))
    return np.stack(columns, axis=1)


def _newton(task: Task, labels: Values, score: Values, group: Rows, num_groups: int, bias: Values) -> Values:
    """Return the Newton step of a bias a group under an L2 penalty, (num_groups,); at most 2 for a logit."""
    if task.kind == "binary":
        rate, strength = _sigmoid(score), 1.0
        curvature = rate * (1 - rate)
    else:
        rate, strength, curvature = score, PRIOR / 2, np.ones(len(score))
    slope = np.bincount(group, labels - rate, minlength=num_groups) - strength * bias
    step = slope / (np.bincount(group, curvature, minlength=num_groups) + strength)
    return np.clip(step, -2, 2) if task.kind == "binary" else step


def _sigmoid(score: Values) -> Values:
    return 0.5 * (1 + np.tanh(0.5 * score))
