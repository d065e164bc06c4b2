"""What a run trains for: the batches, the model, the loss and the evaluation of each value of `task`."""

from __future__ import annotations

from collections.abc import Callable

from longview.data.dataset import PreparedData
from longview.data.labels import Task
from longview.data.schema import Schema
from longview.training.config import RunConfig
from longview.training.goals.both import BothGoal
from longview.training.goals.goal import Baselines, Batches, Goal, Outcome
from longview.training.goals.ranking import RankingGoal
from longview.training.goals.retrieval import RetrievalGoal

GOALS: dict[str, Callable[..., Goal]] = {"retrieval": RetrievalGoal, "ranking": RankingGoal, "both": BothGoal}

__all__ = ["GOALS", "Baselines", "Batches", "Goal", "Outcome", "make_goal"]


def make_goal(
    config: RunConfig, data: PreparedData, schema: Schema | None = None, tasks: tuple[Task, ...] | None = None
) -> Goal:
    """Return the goal of `config.task` on `data`.

    `schema` and `tasks` are those of a trained run; by default they are made from the training part of `data`.

    Raises:
        InputError: what the configuration reads or predicts is not in the data.
    """
    return GOALS[config.task](config, data, schema, tasks)
