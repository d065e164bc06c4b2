"""What a ranking model predicts of a candidate: actions that may happen, and amounts such as a rating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from longview.config import Config
from longview.data.dataset import PreparedData
from longview.data.schema import training_events
from longview.errors import InputError, suggestion

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.float32]


class TaskConfig(Config):
    """One thing to predict: that an `action` happens, that a `strength` is `at_least` so much, or how much it is."""

    name: str = Field(min_length=1, description="what results call it")
    action: str | None = Field(default=None, description="an action of the data")
    strength: str | None = Field(default=None, description="a strength of the data; its amount, unless at_least")
    at_least: float | None = Field(default=None, description="predict whether the strength is at least this")
    weight: float = Field(default=1.0, ge=0, description="of this task's loss in the sum")

    @model_validator(mode="after")
    def _one_source(self) -> TaskConfig:
        if (self.action is None) == (self.strength is None):
            raise ValueError(f"task {self.name!r} needs an action or a strength, and not both")
        if self.at_least is not None and self.strength is None:
            raise ValueError(f"task {self.name!r} has at_least but no strength to compare")
        return self

    @property
    def kind(self) -> Literal["binary", "regression"]:
        return "regression" if self.strength is not None and self.at_least is None else "binary"


class Task(TaskConfig):
    """A task as resolved against a data set: `mean` and `deviation` of its training labels (of a binary one, the rate).

    A model starts from them: it predicts the mean before it has learned anything.
    """

    mean: float
    deviation: float


def resolve_tasks(tasks: Sequence[TaskConfig], data: PreparedData) -> tuple[Task, ...]:
    """Check `tasks` against `data`; with none given, make one of every action and of every strength.

    By default every action of the data is a binary task and every strength a regression task. Where there are no
    actions, "at least its median of training" of each strength is a binary task too, so that there is something to
    order candidates by.

    Raises:
        InputError: nothing to predict, a name twice, an action or strength the data does not have (known ones are
            named), a task without a label in training, a strength that is infinite.
    """
    chosen = list(tasks) or _default_tasks(data)
    if not chosen:
        raise InputError(
            f"{data.meta.name}: events have no actions and no strengths, so there is nothing to predict; "
            "prepare the log with --action or --strength, or train with task: retrieval"
        )
    names = [task.name for task in chosen]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"ranking.tasks: two tasks are called {name!r}; give each a name of its own")
    rows = training_events(data)
    return tuple(_resolve(task, data, rows) for task in chosen)


def labels_of(tasks: Sequence[TaskConfig], data: PreparedData, rows: Rows) -> Labels:
    """Return the labels of the events `rows` (n,): (n, tasks) float32, 1 or 0 or an amount, NaN where unknown."""
    if not len(tasks):
        return np.empty((len(rows), 0), np.float32)
    return np.stack([_labels(task, data, rows) for task in tasks], axis=1)


def missing_labels(tasks: Sequence[TaskConfig]) -> Labels:
    """Return the labels (tasks,) of a candidate that nothing happened to: no action, and no amount."""
    return np.array([0.0 if task.kind == "binary" else np.nan for task in tasks], np.float32)


def _default_tasks(data: PreparedData) -> list[TaskConfig]:
    tasks = [TaskConfig(name=name, action=name) for name in data.meta.actions]
    if not tasks:
        rows = training_events(data)
        for name in data.meta.strengths:
            values = data.strength(name)[rows]
            values = values[np.isfinite(values)]
            if len(values) and values.min() < values.max():
                middle = float(np.quantile(values, 0.5, method="higher"))
                middle = middle if middle > values.min() else float(values[values > middle].min())
                tasks.append(TaskConfig(name=f"{name}>={middle:g}", strength=name, at_least=middle))
    return tasks + [TaskConfig(name=name, strength=name) for name in data.meta.strengths]


def _resolve(task: TaskConfig, data: PreparedData, rows: Rows) -> Task:
    kind, wanted = ("action", task.action) if task.action is not None else ("strength", str(task.strength))
    known: Sequence[str] = data.meta.actions if kind == "action" else data.meta.strengths
    if wanted not in known:
        raise InputError(
            f"ranking.tasks: task {task.name!r} predicts the {kind} {wanted!r}, which {data.meta.name} does not have"
            f"{suggestion(str(wanted), known)}; its actions: {_list(data.meta.actions)}; "
            f"its strengths: {_list(data.meta.strengths)}"
        )
    values = _labels(task, data, rows).astype(np.float64)
    if np.isinf(values).any():
        user = int(np.searchsorted(data.offsets, rows[np.isinf(values)][0], side="right")) - 1
        raise InputError(
            f"{data.meta.name}: strength {wanted!r} is infinite at an event of user "
            f"{data.user_ids.ids[user].as_py()!r}, so task {task.name!r} cannot learn it; clean the log"
        )
    values = values[~np.isnan(values)]
    if not len(values):
        raise InputError(f"{data.meta.name}: no training event has a value of {wanted!r} for task {task.name!r}")
    return Task(**task.model_dump(), mean=float(values.mean()), deviation=float(values.std()))


def _labels(task: TaskConfig, data: PreparedData, rows: Rows) -> Labels:
    if task.action is not None:
        bits: Any = data.actions
        return np.asarray((bits[rows] >> data.meta.actions.index(task.action)) & 1, np.float32)
    values = np.asarray(data.strength(str(task.strength))[rows], np.float32)
    if task.at_least is None:
        return values
    return np.where(np.isnan(values), np.float32(np.nan), values >= np.float32(task.at_least)).astype(np.float32)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
