"""One cell of a study: train, rank the test targets, count operations and measure time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
import torch

from longview.data.batches import HistoryBatches
from longview.data.dataset import PreparedData
from longview.evaluation.metrics import accuracy
from longview.evaluation.ranking import inputs_of, rank_targets
from longview.evaluation.study_quality import pack
from longview.models.flops import Flops, Lengths, lengths_of, request_flops, training_flops
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.goals.goal import schema_of
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.precision import autocast, choose_precision
from longview.training.result import TrainingResult
from longview.training.run import train
from longview.training.rundir import load_model

KS = (1, 5, 10, 20, 50, 100)
TIMED_ROUNDS = 5
TIMED_REQUESTS = 64
LOOK_AGAIN = 0.2  # seconds


def run_cell(
    config: RunConfig, data: PreparedData, directory: Path, *, device: str, seconds: float | None = None
) -> dict[str, Any]:
    """Train `config` in `directory`, going on where an earlier call stopped, and return the record of the cell.

    `flops.training` are the useful operations (`longview.models.flops`) of all epochs: those of the first, counted
    exactly, times their number (where lengths or windows are drawn, other epochs have as many in the mean);
    `flops.request` the mean over the test users of finding the newest event's vector and scoring the catalogue.
    `seconds.step` is the fastest epoch's time over its steps (the first compiles kernels); `seconds.training` that
    times all steps; `seconds.request` that of a request, in batches of `TIMED_REQUESTS`.

    Args:
        config: of a retrieval run, with its seed.
        data: the data set.
        directory: of the run.
        device: where.
        seconds: after so many, training stops at a checkpoint.

    Raises:
        InterruptedRunError: the seconds are over, or a signal came; the same call goes on.
    """
    with stop_after(seconds):
        result = train(config, data, directory, device=device, resume=(directory / "config.json").exists())
    model = load_model(directory, device=device).model
    ranks = rank_targets(model, data, data.split.test, device=device, exclude_seen=not data.meta.repeats)
    per_epoch, steps = _epoch_flops(config, data)
    epochs = len(result.state.epochs)
    request = _request_flops(config, data)
    epoch_seconds = min(record["seconds"] for record in result.state.epochs)
    return {
        "seed": config.loop.seed,
        "config": config.model_dump(mode="json"),
        "metrics": {name: float(values.mean()) for name, values in accuracy(ranks.rank, KS).items()},
        "validation": result.validation.metrics,
        "ranks": pack(ranks.rank),
        "epochs": epochs,
        "best_epoch": result.best_epoch,
        "steps": epochs * steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": {
            "step": per_epoch.total / steps,
            "training": per_epoch.total * epochs,
            "training_parts": per_epoch.times(epochs).to_dict(),
            "request": request.total / max(1, len(data.split.test)),
        },
        "seconds": {
            "step": epoch_seconds / steps,
            "training": epoch_seconds * epochs,
            "request": _request_seconds(model, config, data, torch.device(device)),
        },
        "losses": _losses(result),
        "notes": result.notes,
        "environment": result.environment,
    }


@contextmanager
def stop_after(seconds: float | None) -> Iterator[None]:
    """Ask training within the block to stop after so many seconds, as Ctrl-C does; None never does.

    Where nothing in the block catches Ctrl-C at that moment, it is asked again until something does.
    """
    if seconds is None:
        yield
        return
    usual = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is not usual:  # training listens
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, ask)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, LOOK_AGAIN), LOOK_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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


def _request_seconds(model: Retriever, config: RunConfig, data: PreparedData, device: torch.device) -> float:
    """Return the median seconds of a request, answered in batches: newest event's vector, and all scores."""
    budget = TIMED_REQUESTS * config.model.max_length
    histories = HistoryBatches(
        data, data.split.test, max_length=config.model.max_length, token_budget=budget, inputs=inputs_of(model, data)
    )
    batch = next(batch for _, batch in islice(histories, 1)).to(device)
    dtype, _ = choose_precision(config.loop.precision, device)
    found = []
    with torch.no_grad(), autocast(dtype, device):
        items = model.item_vectors()
        for turn in range(-1, TIMED_ROUNDS):
            begin = time.perf_counter()
            scores = model.user_vectors(batch) @ items.float().T
            float(scores[0, 0])  # waits for an accelerator
            if turn >= 0:
                found.append(time.perf_counter() - begin)
    return median(found) / batch.num_sequences


def _losses(result: TrainingResult) -> list[float]:
    return [round(float(record["loss"]), 5) for record in result.state.epochs]
