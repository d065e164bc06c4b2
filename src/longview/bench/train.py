"""How long an epoch of training takes, and how long recommending to everybody after it.

The default settings are those the project quotes for MovieLens-1M: width 64, 2 layers, history 200, 256 sampled
negatives, batches of 128 histories. On a GPU the same run is timed with its steps as CUDA graphs and launch by launch,
epochs in turn.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from longview.bench.peers import interpreter, time_rectools
from longview.bench.record import write_result
from longview.data.batches import JaggedBatch, TrainingBatches
from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.serving.recommender import Recommender
from longview.training.config import RunConfig, resolve_config
from longview.training.devices import device_named
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.progress import TrainingProgress, memory_in_use
from longview.training.trainer import Trainer

SETTINGS = ("loss.kind=sampled", "loss.num_negatives=256", "batches.batch_size=128", "batches.windows=latest")
WARM_UP_STEPS = 5
IDLE_STEPS = 30
RECOMMEND_REPEATS = 5


def bench_train(
    data: Path | None = None,
    json: Path | None = None,
    *,
    config: str = "hstu-small",
    overrides: Sequence[str] = SETTINGS,
    epochs: int = 3,
    device: str = "cpu",
    peer_python: Path | None = None,
    progress: TrainingProgress | None = None,
) -> dict[str, Any]:
    """Time whole epochs of training, then recommending the top 10 to all users.

    `seconds_per_epoch` is the median over `epochs` epochs after a few warm-up steps (on a GPU an epoch, in which steps
    are compiled and captured); batch building, forward, backward and optimiser are in it, evaluation is not.
    `recommend_seconds` is the median of five calls. On a GPU these are figures with CUDA graphs, where the run allows
    them, and `launch_by_launch` holds the same without; `idle` is the share of the time that no kernel runs.

    Args:
        data: a prepared data set; None makes up a log of the shape of MovieLens-1M, which times the same but
            teaches nothing.
        json: also write the result there.
        config, overrides: the run to time.
        epochs: how many; fewer than 3 say nothing about the spread.
        device: where to train.
        peer_python: an interpreter that has RecTools: its SASRec is timed in the same command.
        progress: gets a note an epoch.

    Raises:
        InputError: fewer than one epoch, no such device, data set or configuration.
    """
    if epochs < 1:
        raise InputError(f"epochs={epochs}: at least 1")
    place = device_named(device)
    run = resolve_config(config, overrides)
    if peer_python is not None:
        peer_python = interpreter(peer_python)  # or say so before anything is trained
    with tempfile.TemporaryDirectory() as scratch:
        opened = synthetic_log(Path(scratch) / "log") if data is None else PreparedData.open(data)
        progress = progress or TrainingProgress()
        result = _measure(run, opened, epochs, place, progress)
        if peer_python is not None:
            progress.note("timing RecTools, one epoch")
            result["peer"] = time_rectools(peer_python, opened, run, threads=torch.get_num_threads())
    if json is not None:
        write_result(json, result)
    return result


def synthetic_log(
    path: Path, *, users: int = 6_040, items: int = 3_416, median_length: float = 96.0, seed: int = 0
) -> PreparedData:
    """Write a log of the shape of MovieLens-1M: as many users, items and events, lengths as skewed; no meaning."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(np.exp(generator.normal(np.log(median_length), 1.03, users)), 18, 2_277).astype(np.int64)
    popularity = 1 / np.arange(10, items + 10)
    events = {
        "item": generator.choice(items, int(lengths.sum()), p=popularity / popularity.sum()).astype(np.int32),
        "timestamp": np.concatenate([np.arange(n) * 60 for n in lengths]).astype(np.int64),
    }
    return write_prepared(
        path,
        name="synthetic log of the shape of MovieLens-1M",
        events=events,
        users=pa.table({"id": [str(u) for u in range(users)], "length": lengths}),
        items=pa.table({"id": [str(i) for i in range(items)]}),
        split=SplitSpec(),
        simulated=True,
    )


def _measure(
    run: RunConfig, data: PreparedData, epochs: int, device: torch.device, progress: TrainingProgress
) -> dict[str, Any]:
    batches = RetrievalGoal(run, data).batches()
    timed = [_Timed(run, data, batches, device)]
    if timed[0].trainer.captured is not None:
        loop = run.loop.model_copy(update={"graphs": "off"})
        timed.append(_Timed(run.model_copy(update={"loop": loop}), data, batches, device))
    for epoch in range(epochs):
        for one in timed:
            last = one.epoch(epoch)
            progress.note(f"epoch {epoch + 1}/{epochs}{one.name}: {last['seconds']:.2f} s, loss {last['loss']:.4f}")
    figures = [one.figures() for one in timed]
    trainer = timed[0].trainer
    notes = trainer.precision_note, trainer.fp8_note, trainer.graphs_note
    recommending = _recommend(trainer, data, device)
    return {
        "benchmark": "train",
        **figures[0],
        **({"launch_by_launch": figures[1]} if figures[1:] else {}),
        "recommend_seconds": round(median(recommending), 4),
        "recommend_all_seconds": [round(s, 4) for s in recommending],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": {
            "name": data.meta.name,
            "users": data.num_users,
            "items": data.num_items,
            "events": data.num_events,
            "fingerprint": data.fingerprint,
        },
        "config": run.model_dump(mode="json"),
        "notes": [note for note in notes if note],
        "environment": {**environment(), "device": str(device)},
    }


class _Timed:
    """A trainer, warmed up, and the epochs it was timed on."""

    def __init__(self, run: RunConfig, data: PreparedData, batches: TrainingBatches, device: torch.device) -> None:
        torch.manual_seed(run.loop.seed)
        self.batches, self.device = batches, device
        self.epochs: list[dict[str, Any]] = []
        before = _reset_peak(device)
        self.trainer = Trainer(run, data, device=device, steps_per_epoch=batches.steps(0))
        self.name = "" if device.type == "cpu" else " with graphs" if self.trainer.captured else " launch by launch"
        self.steps = 0
        for batch in islice(batches.epoch(0), WARM_UP_STEPS if device.type == "cpu" else None):
            self._step(batch)
        self.memory = _peak_memory(device) - before

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Time an epoch; return what is known of it."""
        losses, events, steps = [], 0, 0
        begin = time.perf_counter()
        for batch in self.batches.epoch(epoch):
            losses.append(self._step(batch) * batch.num_tokens)
            events, steps = events + batch.num_tokens, steps + 1
        mean = float(torch.stack(losses).sum()) / events  # waits for an accelerator
        seconds = round(time.perf_counter() - begin, 4)
        self.epochs.append({"seconds": seconds, "loss": mean, "events": events, "steps": steps})
        return self.epochs[-1]

    def figures(self) -> dict[str, Any]:
        """Return the medians over the epochs."""
        seconds = [one["seconds"] for one in self.epochs]
        found = {
            "seconds_per_epoch": round(median(seconds), 3),
            "spread": [round(min(seconds), 3), round(max(seconds), 3)],
            "epochs": self.epochs,
            "events_per_second": round(self.epochs[0]["events"] / median(seconds)),
            "peak_memory_bytes": self.memory if self.device.type == "cuda" else _peak_memory(self.device),
        }
        if self.device.type == "cuda":
            found |= {"graphs": 0 if self.trainer.captured is None else self.trainer.captured.captured}
            found |= {"idle": self._idle()}
        return found

    def _step(self, batch: JaggedBatch) -> Tensor:
        loss, _ = self.trainer.step(batch, self.steps)
        self.steps += 1
        return loss

    def _idle(self) -> float:
        """Return the share of the time of some steps in which the GPU has nothing to do."""
        batches = list(islice(self.batches.epoch(0), IDLE_STEPS))
        seconds = self._seconds(batches)
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:  # slows the host, and no kernel
            self._seconds(batches)
        work = [event for event in recorded.events() if "CUDA" in str(event.device_type)]
        busy: float = sum(event.time_range.elapsed_us() for event in work) / 1e6
        return round(max(0.0, 1 - busy / seconds), 4)

    def _seconds(self, batches: list[JaggedBatch]) -> float:
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        for batch in batches:
            self._step(batch)
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


def _reset_peak(device: torch.device) -> int:
    """Begin to measure a GPU's peak; return the bytes that others hold on it, 0 for a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory(device: torch.device) -> int:
    """Return bytes: the most the process ever had resident on a CPU, the allocator's peak on a GPU."""
    if device.type == "cuda":
        return memory_in_use(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _recommend(trainer: Trainer, data: PreparedData, device: torch.device) -> list[float]:
    recommender = Recommender(trainer.evaluated, data.item_table, data, device=device)
    seconds = []
    for _ in range(RECOMMEND_REPEATS + 1):
        begin = time.perf_counter()
        recommender.recommend(k=10)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]  # the first call also reads the files
