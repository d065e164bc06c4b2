"""What balancing stochastic length over ranks is worth: simulated on eight, measured on two processes.

Simulated: every rank draws batches of histories and the rule cuts them, with nothing but lengths; a step takes as long
as its slowest rank, by a model of step time that is fitted to steps of the real network on this machine. Measured:
two processes of one thread each train the real network together; policies take turns step by step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from longview.bench.record import write_result
from longview.bench.train import synthetic_log
from longview.data.batches import JaggedBatch, TrainingBatches
from longview.data.dataset import PreparedData
from longview.data.share import Rows
from longview.data.stochastic_length import LoadBalancer, StepTime, StochasticLength, fit_step_time, load_of
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.training.config import RunConfig, resolve_config
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.trainer import Trainer

Draw = Callable[[int, np.random.Generator], Rows]
POLICIES = ("full", "plain", "balanced")
ALPHA, INTERVAL = 1.7, 100
RANKS, SIZES = 8, (16, 32, 64, 128)
LONGEST, MEDIAN, SIGMA = 16_384, 4_000, 1.0  # of the made-up lifelong histories
HISTORIES = (200, 2_048)  # longest histories of the presets, to which a data set's are cut
SHAPES = ((1, 256), (4, 256), (8, 512), (1, 1024), (4, 1024), (2, 2048), (1, 4096))  # of the steps that are timed
MODEL = ("loss.kind=sampled", "loss.negative_groups=16", "optimiser.average_decay=0")
ATTENTION = {1.0: (), 2.0: ("model.attention.local_window=0", "model.attention.global_size=0")}
METHOD = (
    "simulated: each rank draws batch_size histories a step, independently; load of a rank: sum of n^gamma; spread: "
    "(max - mean) / mean and standard deviation / mean over the ranks, medians over the steps after the first estimate "
    "of the target; tokens_per_second: all tokens over the sum of the slowest rank's seconds, fixed + slope * load, "
    "fitted by least squares to medians of timed steps of preset ultra-small (gamma 1) and of the same with full "
    "attention (gamma 2), lengths of up to 4096; targets re-estimated every 100 steps from all ranks. measured: two "
    "gloo processes, one thread each, preset ultra-small, policies take turns step by step; busy: CPU seconds of a "
    "rank's step, spread as above; tokens_per_second: tokens of both ranks over wall seconds"
)


def bench_balance(
    json: Path | None = None,
    *,
    data: Path | None = None,
    ranks: int = RANKS,
    steps: int = 300,
    rounds: int = 20,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compare full histories, plain stochastic length and its balanced form.

    Args:
        json: also write the result there, after every part.
        data: a prepared data set whose histories are simulated too, beside made-up lifelong ones.
        ranks: simulated ones.
        steps: simulated ones, after those that the first estimate needs.
        rounds: timed steps of each setting.
        progress: gets a note a part.

    Raises:
        InputError: fewer than two ranks, or no steps or rounds.
    """
    if ranks < 2 or steps < 1 or rounds < 1:
        raise InputError(f"ranks={ranks}, steps={steps}, rounds={rounds}: at least 2, 1 and 1")
    result: dict[str, Any] = {"benchmark": "balance", "method": METHOD, "environment": environment(), "alpha": ALPHA}

    def add(**parts: Any) -> None:
        result.update(parts)
        if json is not None:
            write_result(json, result)

    with tempfile.TemporaryDirectory() as scratch:
        log = synthetic_log(Path(scratch) / "log", users=1_000, items=2_000, median_length=600.0)
        progress("timing steps of the network")
        times = {gamma: _fitted(log, gamma, rounds) for gamma in ATTENTION}
        add(step_time=[fit for _, fit in times.values()])
        progress("simulating")
        models = [model for model, _ in times.values()]
        add(simulated=[one for name, longest, draw in _populations(data) for model in models for size in SIZES
                       for one in [_simulate(name, longest, draw, model, size, ranks, steps)]])  # fmt: skip
        progress("training on two processes")
        add(measured=_measure(Path(scratch), log, rounds))
    return result


def _populations(data: Path | None) -> list[tuple[str, int, Draw]]:
    """Return a name, the longest history and how to draw lengths, of each kind of history."""

    def lifelong(number: int, generator: np.random.Generator) -> Rows:
        drawn = generator.lognormal(np.log(MEDIAN), SIGMA, number)
        return np.clip(drawn, 20, LONGEST).astype(np.int64)

    kinds: list[tuple[str, int, Draw]] = [(f"lifelong, lognormal, median {MEDIAN}, sigma {SIGMA}", LONGEST, lifelong)]
    if data is None:
        return kinds
    opened = PreparedData.open(data)
    lengths = (opened.split.train_end - 1 - opened.offsets[:-1]).astype(np.int64)
    lengths = lengths[lengths > 0]

    def of(longest: int) -> Draw:
        return lambda number, generator: np.minimum(generator.choice(lengths, number), longest)

    return [*((opened.meta.name, longest, of(longest)) for longest in HISTORIES), *kinds]


def _simulate(
    name: str, longest: int, draw: Draw, model: StepTime, size: int, ranks: int, steps: int
) -> dict[str, Any]:
    """Return spread and speed of each policy, `size` histories a rank and step."""
    rule, gamma = StochasticLength(longest, ALPHA), model.gamma
    generator = np.random.default_rng(0)
    balancers = [LoadBalancer(rule, gamma=gamma, interval=sys.maxsize) for _ in range(ranks)]
    seen: dict[str, list[list[Rows]]] = {policy: [] for policy in POLICIES}
    for step in range(INTERVAL + steps):
        lengths = [draw(size, generator) for _ in range(ranks)]
        balanced = [one.draw(n, size, generator) for one, n in zip(balancers, lengths, strict=True)]
        if (step + 1) % INTERVAL == 0:
            load, total = (sum(column) for column in zip(*(one.sums for one in balancers), strict=True))
            for one in balancers:
                one.aim(load, total)
        if step >= INTERVAL:
            seen["full"].append(lengths)
            seen["plain"].append([rule.draw(n, generator) for n in lengths])
            seen["balanced"].append(balanced)
    found = {policy: _figures(steps_seen, model) for policy, steps_seen in seen.items()}
    return {
        "histories": name,
        "max_length": longest,
        "gamma": gamma,
        "ranks": ranks,
        "batch_size_a_rank": size,
        **found,
        "speed_up_of_balance": round(found["balanced"]["tokens_per_second"] / found["plain"]["tokens_per_second"], 3),
    }


def _figures(steps: list[list[Rows]], model: StepTime) -> dict[str, Any]:
    loads = np.array([[load_of(kept, model.gamma) for kept in ranks] for ranks in steps])
    tokens = sum(int(kept.sum()) for ranks in steps for kept in ranks)
    seconds = float((model.fixed + model.slope * loads.max(axis=1)).sum())
    return {
        **_spread(loads),
        "tokens_a_history": round(tokens / sum(len(kept) for ranks in steps for kept in ranks), 1),
        "mean_load": float(loads.mean()),
        "tokens_per_second": tokens / seconds,
    }


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Return medians over steps of the spread over ranks; `values` (steps, ranks)."""
    mean = values.mean(axis=1)
    return {
        "max_over_mean": round(float(np.median(values.max(axis=1) / mean - 1)), 4),
        "std_over_mean": round(float(np.median(values.std(axis=1) / mean)), 4),
    }


def _fitted(data: PreparedData, gamma: float, rounds: int) -> tuple[StepTime, dict[str, Any]]:
    """Return the model of step time with exponent `gamma`, and what it was fitted to."""
    config = resolve_config("ultra-small", [*MODEL, *ATTENTION[gamma], "model.max_length=4096"])
    torch.manual_seed(0)
    trainer = Trainer(config, data, device=torch.device("cpu"), steps_per_epoch=1)
    batches = [_batch(data, [length] * number) for number, length in SHAPES]
    seconds: list[list[float]] = [[] for _ in batches]
    for turn in range(-1, min(rounds, 7)):
        for batch, spent in zip(batches, seconds, strict=True):
            begin = time.perf_counter()
            trainer.step(batch, 0)
            if turn >= 0:
                spent.append(time.perf_counter() - begin)
    lengths = [batch.offsets.diff().numpy() for batch in batches]
    medians = [median(spent) for spent in seconds]
    model, free = fit_step_time(lengths, medians, gamma), fit_step_time(lengths, medians)
    return model, {
        "attention": "full" if ATTENTION[gamma] else "semi-local",
        **vars(model),
        "gamma_fitted": round(free.gamma, 3),
        "largest_relative_error": round(
            max(abs(model.seconds(n) / s - 1) for n, s in zip(lengths, medians, strict=True)), 3
        ),
        "steps": [{"sequences": number, "length": length, "seconds": round(spent, 5)}
                  for (number, length), spent in zip(SHAPES, medians, strict=True)],
    }  # fmt: skip


def _batch(data: PreparedData, lengths: Sequence[int]) -> JaggedBatch:
    """Return histories of `lengths` with random items and the times of one event a minute."""
    total, generator = sum(lengths), torch.Generator().manual_seed(0)
    items = torch.randint(data.num_items, (2, total), generator=generator)
    times = torch.cat([60 * torch.arange(length) for length in lengths])
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    return JaggedBatch(items[0], offsets, timestamps=times, targets=items[1])


def _measure(folder: Path, data: PreparedData, rounds: int) -> dict[str, Any]:
    """Return spread and speed of two processes that train together."""
    spawn(_train, (str(folder), str(data.path), rounds), nprocs=2)  # type: ignore[no-untyped-call]
    both = [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]
    found: dict[str, Any] = {}
    for policy in POLICIES:
        wall, busy, tokens, loads = (np.array([one[policy][column] for one in both]).T for column in range(4))
        found[policy] = {
            "busy": _spread(busy),
            "load": _spread(loads),
            "seconds_a_step": round(float(np.median(wall.max(axis=1))), 4),
            "tokens_a_step": round(float(tokens.sum(axis=1).mean())),
            "tokens_per_second": float(tokens.sum() / wall.max(axis=1).sum()),
        }
    plain, balanced = (found[policy]["tokens_per_second"] for policy in ("plain", "balanced"))
    return {
        "processes": 2,
        "rounds": rounds,
        "config": _config("balanced").model_dump(mode="json"),
        **found,
        "speed_up_of_balance": round(balanced / plain, 3),
    }


def _config(policy: str) -> RunConfig:
    """Return a run on histories of up to 2,048 events, 16 a process and step."""
    settings = [*MODEL, "batches.batch_size=32", "batches.token_budget=null", "batches.windows=latest"]
    if policy != "full":
        balance = "load" if policy == "balanced" else "none"
        prefix = "batches.stochastic_length"
        settings += [f"{prefix}.alpha={ALPHA}", f"{prefix}.balance={balance}", f"{prefix}.interval=10"]
    return resolve_config("ultra-small", settings)


def _stream(batches: TrainingBatches) -> Iterator[JaggedBatch]:
    for epoch in count(1):
        yield from batches.epoch(epoch)


def _train(rank: int, folder: str, data_path: str, rounds: int) -> None:
    """Be process `rank` of two; leave wall and busy seconds, tokens and load of each step in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", world_size=2, rank=rank)
    data, runs = PreparedData.open(data_path), {}
    for policy in POLICIES:
        config = _config(policy)
        torch.manual_seed(0)
        goal = RetrievalGoal(config, data)
        trainer = Trainer(config, data, device=torch.device("cpu"), steps_per_epoch=1, goal=goal)
        batches = goal.batches()
        for _ in batches.epoch(0):  # plain draws, until the first estimate
            pass
        runs[policy] = (trainer, _stream(batches))
    found: dict[str, list[list[float]]] = {policy: [[], [], [], []] for policy in POLICIES}
    for turn in range(-2, rounds):
        for policy, (trainer, stream) in runs.items():
            batch = next(stream)
            distributed.barrier()
            begin, busy = time.perf_counter(), time.thread_time()
            trainer.step(batch, 0)
            figures = (
                time.perf_counter() - begin,
                time.thread_time() - busy,
                batch.num_tokens,
                load_of(batch.offsets.diff().numpy(), 1.0),
            )
            if turn >= 0:
                for column, value in zip(found[policy], figures, strict=True):
                    column.append(value)
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    distributed.destroy_process_group()
