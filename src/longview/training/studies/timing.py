"""What a training step and a request of a configuration take, measured with nothing else running."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import torch

from longview.data.batches import HistoryBatches, JaggedBatch
from longview.data.dataset import PreparedData
from longview.evaluation.environment import environment
from longview.evaluation.ranking import evaluation_mode, inputs_of
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.devices import reproducible
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.graph import WARM_UP
from longview.training.precision import autocast, choose_precision
from longview.training.trainer import Trainer

BATCHES = 8  # different batches that are timed together
ROUNDS = 5  # of which the median counts
ENOUGH = 2.0  # seconds after which no further round begins
REQUESTS = 64  # answered at a time, or fewer long ones:
REQUEST_TOKENS = 1 << 18


def time_config(config: RunConfig, data: PreparedData, device: torch.device) -> dict[str, Any]:
    """Return `step` and `request` in seconds, and the `environment`.

    A step is the mean over the first batches of an epoch, after as many rounds as a step takes to be captured (on a
    CPU one), the median of some rounds. A request is answered beside others: the newest event's vector from nothing,
    and scores of all items, in the run's precision; the weights are fresh ones.
    """
    goal = RetrievalGoal(config, data)
    with reproducible(config.loop.seed, device):
        batches = goal.batches()
        trainer = Trainer(config, data, device=device, steps_per_epoch=batches.steps(0), goal=goal)
        some = list(islice(batches.epoch(0), BATCHES))
        step = _step_seconds(trainer, some)
        request = _request_seconds(trainer.evaluated, config, data, device)
    return {"step": step, "request": request, "environment": environment()}


def _step_seconds(trainer: Trainer, batches: list[JaggedBatch]) -> float:
    def once() -> None:
        for number, batch in enumerate(batches):
            loss, _ = trainer.step(batch, number)
        float(loss)  # waits for an accelerator

    warm_up = 1 if trainer.captured is None else WARM_UP + 1
    return _rounds(once, warm_up) / len(batches)


def _request_seconds(model: Retriever, config: RunConfig, data: PreparedData, device: torch.device) -> float:
    length = config.model.max_length
    budget = max(length, min(REQUESTS * length, REQUEST_TOKENS))
    histories = HistoryBatches(
        data, data.split.test, max_length=length, token_budget=budget, inputs=inputs_of(model, data)
    )
    batch = next(batch for _, batch in islice(histories, 1)).to(device)
    dtype, _ = choose_precision(config.loop.precision, device)
    with torch.no_grad(), autocast(dtype, device), evaluation_mode(model):
        items = model.item_vectors()

        def once() -> None:
            scores = model.user_vectors(batch) @ items.float().T
            float(scores[0, 0])

        return _rounds(once, 1) / batch.num_sequences


def _rounds(once: Callable[[], None], warm_up: int) -> float:
    """Return the median seconds of `once`."""
    for _ in range(warm_up):
        once()
    found: list[float] = []
    while not found or (len(found) < ROUNDS and sum(found) < ENOUGH):
        begin = time.perf_counter()
        once()
        found.append(time.perf_counter() - begin)
    return median(found)
