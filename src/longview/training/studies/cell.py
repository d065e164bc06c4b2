"""One cell of a study: train, rank the test targets, count operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from longview.data.batches import HistoryBatches, JaggedBatch
from longview.data.dataset import PreparedData
from longview.evaluation.environment import environment
from longview.evaluation.metrics import accuracy
from longview.evaluation.ranking import rank_targets
from longview.evaluation.study_quality import pack
from longview.models.flops import Flops, Lengths, lengths_of, request_flops, training_flops
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.devices import device_named
from longview.training.goals.goal import schema_of
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.precision import autocast, choose_precision
from longview.training.studies.fit import Choice, fit

KS = (1, 5, 10, 20, 50, 100)


def run_cell(
    config: RunConfig, data: PreparedData, *, device: str, choose: Choice = "best", deadline: float | None = None
) -> dict[str, Any]:
    """Train `config` and return the record of the cell; what time it takes is for `timing.time_config`.

    `flops.training` are the useful operations (`longview.models.flops`) of all epochs: those of the first, counted
    exactly, times their number (where lengths or windows are drawn, other epochs have as many in the mean);
    `flops.request` the mean over the test users of finding the newest event's vector and scoring the catalogue.

    Args:
        config: of a retrieval run, with its seed.
        data: the data set.
        device: where.
        choose: which weights are evaluated, see `fit`.
        deadline: `time.time()` at which the cell is given up.

    Raises:
        InterruptedRunError: the deadline is over, or a signal came; the cell begins again another time.
    """
    place = device_named(device)
    fitted = fit(config, data, device=place, choose=choose, deadline=deadline)
    model = _InPrecision(fitted.model, config, place)
    ranks = rank_targets(model, data, data.split.test, device=place, exclude_seen=not data.meta.repeats)
    per_epoch, steps = _epoch_flops(config, data)
    state = fitted.state
    epochs = len(state.epochs)
    request = _request_flops(config, data)
    return {
        "seed": config.loop.seed,
        "config": config.model_dump(mode="json"),
        "metrics": {name: float(values.mean()) for name, values in accuracy(ranks.rank, KS).items()},
        "validation": state.best_metrics if choose == "best" else None,
        "ranks": pack(ranks.rank),
        "epochs": epochs,
        "best_epoch": state.best_epoch,
        "steps": epochs * steps,
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "flops": {
            "step": per_epoch.total / steps,
            "training": per_epoch.total * epochs,
            "training_parts": per_epoch.times(epochs).to_dict(),
            "request": request.total / max(1, len(data.split.test)),
        },
        "losses": [round(float(record["loss"]), 5) for record in state.epochs],
        "notes": fitted.notes,
        "environment": environment(),
    }


class _InPrecision:
    """A model whose histories are read in the precision of its run; scores are float32, so that few items tie."""

    def __init__(self, model: Retriever, config: RunConfig, device: torch.device) -> None:
        self.model, self.device = model.eval(), device
        self.max_length, self.schema = model.max_length, model.schema
        self.dtype, _ = choose_precision(config.loop.precision, device)

    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        with autocast(self.dtype, self.device):
            return self.model.user_vectors(batch)

    def item_vectors(self) -> Tensor:
        return self.model.item_vectors()


def _epoch_flops(config: RunConfig, data: PreparedData) -> tuple[Flops, int]:
    """Return the operations of the first epoch, and its steps."""
    goal = RetrievalGoal(config, data)
    scored = data.num_items if config.loss.kind == "full" else 1 + config.loss.num_negatives
    context, found, steps = len(goal.schema.context), Flops(), 0
    for batch in goal.batches().epoch(0):
        lengths = lengths_of(config.model, batch, data.meta.actions, context=context)
        found += _by_length(config, lengths, lambda some: training_flops(config.model, some, scored=scored,
                                                                         schema=goal.schema))  # fmt: skip
        steps += 1
    return found, steps


def _by_length(config: RunConfig, lengths: list[Lengths], count: Any) -> Flops:
    """Return the operations of all `lengths`; where there are no streams, those of equal length are counted once."""
    if config.model.streams:
        return count(lengths)  # type: ignore[no-any-return]
    found = Flops()
    sizes, numbers = np.unique([one.history for one in lengths], return_counts=True)
    for size, number in zip(sizes.tolist(), numbers.tolist(), strict=True):
        found += count([Lengths(size, lengths[0].context)]).times(number)
    return found


def _request_flops(config: RunConfig, data: PreparedData) -> Flops:
    """Return the operations of one request of each test user, summed."""
    schema, found = schema_of(config, data), Flops()
    for _, batch in HistoryBatches(data, data.split.test, max_length=config.model.max_length):
        lengths = lengths_of(config.model, batch, data.meta.actions, context=len(schema.context))
        found += _by_length(config, lengths, lambda some: _requests(config, data, some, schema))
    return found


def _requests(config: RunConfig, data: PreparedData, lengths: list[Lengths], schema: Any) -> Flops:
    found = Flops()
    for one in lengths:
        found += request_flops(config.model, one, candidates=data.num_items, schema=schema)
    return found
