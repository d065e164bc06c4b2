"""How long an epoch of training takes, and how long recommending to everybody after it.

The default settings are those the project quotes for MovieLens-1M: width 64, 2 layers, history 200, 256 sampled
negatives, batches of 128 histories.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from longview.bench.peers import time_rectools
from longview.data.batches import TrainingBatches
from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.files import write_json
from longview.serving.recommender import Recommender
from longview.training.config import RunConfig, resolve_config
from longview.training.progress import TrainingProgress, memory_in_use
from longview.training.trainer import Trainer

SETTINGS = ("loss.kind=sampled", "loss.num_negatives=256", "batches.batch_size=128", "batches.windows=latest")
WARM_UP_STEPS = 5
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

    `seconds_per_epoch` is the median over `epochs` epochs after a few warm-up steps; batch building, forward,
    backward and optimiser are in it, evaluation is not. `recommend_seconds` is the median of five calls.

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
        InputError: fewer than one epoch, no such data set or configuration.
    """
    if epochs < 1:
        raise InputError(f"epochs={epochs}: at least 1")
    run = resolve_config(config, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        opened = synthetic_log(Path(scratch) / "log") if data is None else PreparedData.open(data)
        progress = progress or TrainingProgress()
        result = _measure(run, opened, epochs, torch.device(device), progress)
        if peer_python is not None:
            progress.note("timing RecTools, one epoch")
            result["peer"] = time_rectools(peer_python, opened, run, threads=torch.get_num_threads())
    if json is not None:
        write_json(json, result)
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
    torch.manual_seed(run.loop.seed)
    batches = TrainingBatches(data, max_length=run.model.max_length, seed=run.loop.seed, **run.batches.model_dump())
    trainer = Trainer(run, data, device=device, steps_per_epoch=batches.steps(0))
    for step, batch in zip(range(WARM_UP_STEPS), batches.epoch(0), strict=False):
        trainer.step(batch.to(device), step)
    timed = []
    for epoch in range(epochs):
        timed.append(_epoch(trainer, batches, epoch))
        progress.note(f"epoch {epoch + 1}/{epochs}: {timed[-1]['seconds']:.2f} s, loss {timed[-1]['loss']:.4f}")
    memory = _peak_memory(device)
    seconds = [one["seconds"] for one in timed]
    recommending = _recommend(trainer, data, device)
    return {
        "benchmark": "train",
        "seconds_per_epoch": round(median(seconds), 3),
        "spread": [round(min(seconds), 3), round(max(seconds), 3)],
        "epochs": timed,
        "events_per_second": round(timed[0]["events"] / median(seconds)),
        "peak_memory_bytes": memory,
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
        "notes": [trainer.precision_note] if trainer.precision_note else [],
        "environment": {**environment(), "device": str(device)},
    }


def _peak_memory(device: torch.device) -> int:
    """Return bytes: the most the process ever had resident on a CPU, the allocator's peak on a GPU."""
    if device.type == "cuda":
        return memory_in_use(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _epoch(trainer: Trainer, batches: TrainingBatches, epoch: int) -> dict[str, Any]:
    losses, events, steps = [], 0, 0
    begin = time.perf_counter()
    for batch in batches.epoch(epoch):
        loss, _ = trainer.step(batch.to(trainer.device), WARM_UP_STEPS + epoch * batches.steps(0) + steps)
        losses.append(loss * batch.num_tokens)
        events, steps = events + batch.num_tokens, steps + 1
    mean = float(torch.stack(losses).sum()) / events  # waits for an accelerator
    return {"seconds": round(time.perf_counter() - begin, 4), "loss": mean, "events": events, "steps": steps}


def _recommend(trainer: Trainer, data: PreparedData, device: torch.device) -> list[float]:
    recommender = Recommender(trainer.evaluated, data.item_table, data, device=device)
    seconds = []
    for _ in range(RECOMMEND_REPEATS + 1):
        begin = time.perf_counter()
        recommender.recommend(k=10)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]  # the first call also reads the files
