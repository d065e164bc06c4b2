"""Histories to user vectors, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.models.interface import VectorRecommender
from longview.serving.histories import Histories

Rows = npt.NDArray[np.int64]
Job = tuple[Rows, JaggedBatch]
Part = tuple[Rows, Tensor]


def encode(model: VectorRecommender, histories: Histories, device: torch.device) -> Tensor:
    """Return (n, d) float32, the vector of each of the (one or more) `histories`."""

    def vectors(job: Job) -> Part:
        rows, batch = job
        # In each thread: a new one does not inherit it. GPU kernels keep their work lists with tensors that count
        # their changes, which those of inference mode do not.
        with torch.inference_mode(device.type == "cpu"), torch.no_grad():
            return rows, model.user_vectors(batch.to(device)).float()

    found: Tensor | None = None
    for rows, part in _map(vectors, list(histories.batches(model.max_length)), device):
        if found is None:
            found = torch.empty(len(histories), part.shape[1], device=device)
        found[torch.from_numpy(rows).to(device)] = part
    assert found is not None, "there is at least one history"
    return found


def _map(compute: Callable[[Job], Part], jobs: list[Job], device: torch.device) -> Iterator[Part]:
    """Yield `compute` of every job; on a CPU with enough of them, a thread a job rather than all threads on each.

    Threads that share every small operation wait for each other after each; where another program holds a core, that
    waiting costs ten times the work.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(jobs) < 2 * threads:
        yield from map(compute, jobs)
        return
    with _one_thread_each(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(compute, jobs)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Put the number of torch's threads back afterwards: a worker's own setting is also that of later threads."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
