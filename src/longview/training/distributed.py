"""Training on several processes, each on its share of every batch; on one process everything is what it was.

`torchrun --nproc-per-node 2 -m longview train …` starts them and says in environment variables who is who. Each holds
the whole model. Gradients are summed, weighted by how many positions each loss is a mean of, so that a step is that of
one process on the whole batch. Rank 0 alone writes, logs and evaluates, and the others wait for what it found.

What depends on the clock or on a signal must come out alike everywhere, or a process would wait for ever: it is asked
of rank 0, or of all.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longview.data.share import Share
from longview.errors import InputError, LongviewError
from longview.ops.collectives import ranks, same_on_all_ranks
from longview.training.config import RunConfig

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # an evaluation on rank 0 may take long
OWN = ("random.", "objective.", "batches.")  # tensors of a checkpoint that each rank has its own of
FAR_APART = 1_000_003  # between the seeds of ranks


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for the block, and yield this one's device.

    Without torchrun, or in a group that has begun already, nothing is set up.

    Raises:
        InputError: more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda" and device.index is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local + 1} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                "lower --nproc-per-node, or train with --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Small sums go over gloo even beside a GPU, so that nothing waits for it.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
        gc.collect()  # its threads end now, and not while the interpreter does


def check_processes(config: RunConfig) -> None:
    """Refuse what cannot be trained on several processes.

    Raises:
        InputError: it names the setting.
    """
    world, _ = ranks()
    if world > 1 and config.task != "retrieval":
        raise InputError(
            f"task {config.task} trains on one process: its losses are means over labels, which the shares of a batch "
            "have different numbers of; run it without torchrun"
        )
    if world > 1 and config.optimiser.tables != "dense":
        raise InputError(
            f"optimiser.tables {config.optimiser.tables} trains on one process: sparse gradients are not summed over "
            "several; set optimiser.tables dense, or run without torchrun"
        )


def speaks() -> bool:
    """Return whether this process is the one that talks to the user, in or outside of `process_group`."""
    return is_main() and os.environ.get("RANK", "0") == "0"


def share() -> Share:
    """Return which part of every batch is this process's."""
    world, rank = ranks()
    return Share(rank, world, total)


def is_main() -> bool:
    """Return whether this is the process that writes."""
    return ranks()[1] == 0


def on_main(function: Callable[[], T]) -> T:
    """Return what `function` returns on rank 0, on every rank; an error there is raised on all."""
    if ranks()[0] == 1:
        return function()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = function()
        except (LongviewError, OSError) as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def total(number: float) -> float:
    """Return the sum of `number` over the ranks."""
    if ranks()[0] == 1:
        return number
    both = torch.tensor([number], dtype=torch.float64)
    dist.all_reduce(both)
    return float(both)


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on any rank."""
    return total(float(flag)) > 0


def agreed_time() -> float:
    """Return the seconds of a clock that all ranks read alike, that of rank 0."""
    now = time.perf_counter()
    if ranks()[0] == 1:
        return now
    told = torch.tensor([now], dtype=torch.float64)
    dist.broadcast(told, 0)
    return float(told)


def begin_alike(model: nn.Module, generators: tuple[torch.Generator, ...], seed: int) -> None:
    """Give each rank random streams of its own for what follows; refuse to begin from different weights.

    Raises:
        LongviewError: the weights differ between ranks.
    """
    world, rank = ranks()
    if world == 1:
        return
    same_on_all_ranks([p.detach() for p in model.parameters()], "the initial weights")
    if rank:
        torch.manual_seed(seed + rank * FAR_APART)
        for generator in generators:
            generator.manual_seed(generator.initial_seed() + rank * FAR_APART)


@torch.no_grad()
def sum_gradients(model: nn.Module, loss: Tensor, terms: int) -> Tensor:
    """Make the gradients of `model` those of the batch of all ranks, and return its loss, a scalar.

    `loss` is a mean of `terms` on this rank; 0 where its share is empty. All gradients travel in one copy. A parameter
    that has no gradient on any rank keeps none.
    """
    if ranks()[0] == 1:
        return loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    used = [float(p.grad is not None) for p in parameters]
    ours = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() * terms for p in parameters]
    flat = torch.cat([*ours, loss.detach().new_tensor([*used, terms]), loss.detach().reshape(1) * terms])
    dist.all_reduce(flat)
    *sums, anywhere, count, loss_sum = torch.split(flat, [*(p.numel() for p in parameters), len(parameters), 1, 1])
    count = count.clamp(min=1)
    for parameter, gradient, users in zip(parameters, sums, anywhere.tolist(), strict=True):
        parameter.grad = (gradient / count).view_as(parameter) if users else None
    mean: Tensor = (loss_sum / count).squeeze(0)
    return mean


def with_all_ranks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what rank 0 saves: its `tensors`, and under `rank-n.` those that rank n has its own of."""
    world, rank = ranks()
    if world == 1:
        return tensors
    own = {name: value.cpu() for name, value in tensors.items() if name.startswith(OWN)}
    gathered: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(own, gathered)
    others = {} if gathered is None else dict(enumerate(gathered[1:], 1))
    return tensors | {f"rank-{n}.{name}": value for n, theirs in others.items() for name, value in theirs.items()}


def of_this_rank(tensors: dict[str, Tensor], processes: int) -> dict[str, Tensor]:
    """Undo `with_all_ranks` of a checkpoint that `processes` wrote.

    Raises:
        InputError: it was another number than now.
    """
    world, rank = ranks()
    if world != processes:
        how = f"torchrun --nproc-per-node {processes} -m longview train …" if processes > 1 else "no torchrun"
        raise InputError(
            f"the checkpoint is of a run on {processes} process{'es' if processes > 1 else ''}, and there "
            f"{'are' if world > 1 else 'is'} {world} now: random states would not be those of the run; "
            f"resume with {how}"
        )
    prefix = f"rank-{rank}."
    shared = {name: value for name, value in tensors.items() if not name.startswith("rank-")}
    return shared | {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
