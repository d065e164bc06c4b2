"""The untrained model of a run."""

from __future__ import annotations

from collections.abc import Sequence

from longview.data.labels import Task
from longview.data.schema import Schema
from longview.models.ranker import Ranker
from longview.models.retriever import Retriever
from longview.training.config import RunConfig


def build_model(
    config: RunConfig, num_items: int, actions: Sequence[str], schema: Schema, tasks: tuple[Task, ...]
) -> Retriever:
    """Return the model of `config` for a catalogue.

    `actions` are the data's action names, bit 0 first; `schema` is what the model reads beside items and times, `tasks`
    what it predicts of candidates.
    """
    if config.task == "retrieval":
        return config.model.build(num_items, actions, schema)
    both = config.task == "both"
    return Ranker(config.model, config.ranking.head, num_items, tasks, actions, schema, retrieves=both)
