"""Cells of a study of metric learning at the same time: over devices, over processes, and over streams of a process.

The kernels of a small encoder leave most of a GPU idle, and kernels of several processes take turns. So a process
trains several cells at a time, each on a stream of its own, in turns of a few steps; and a few processes share a GPU,
so that one that evaluates on the host leaves it to the others. Where NVIDIA's Multi-Process Service is at work, kernels
of all processes run side by side, and more processes of fewer streams are faster: no host waits for another then.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from longview.data.images import ImageSet
from longview.errors import LongviewError
from longview.training.devices import device_named
from longview.training.studies.image_cell import CellImages, image_cell, time_cell
from longview.training.studies.metric_config import MetricCell

STREAMS = 4  # cells that a process trains at a time on a GPU
STREAMS_SERVED = 2  # the same where processes share a GPU by the Multi-Process Service
SERVICE = "CUDA_MPS_PIPE_DIRECTORY"  # the variable of the environment that leads processes to the service
LOOK_AGAIN = 0.5  # seconds
LAST_WORDS = 30.0  # seconds that processes get after the deadline

Keep = Callable[["Job", "dict[str, Any] | str"], None]


@dataclass(frozen=True)
class Job:
    """A cell to train, or, with `timed_steps`, one whose steps are to be measured alone on its device."""

    cell: MetricCell
    timed_steps: int = 0


def run_jobs(jobs: Sequence[Job], data: Path, device: str, parallel: int, deadline: float | None, keep: Keep) -> None:
    """Do `jobs`, those that measure time first and alone, until `deadline` (of `time.time()`); `keep` gets each result.

    With `parallel` 1, here and one by one. Otherwise in processes of `STREAMS` cells each, shared out over all GPUs.
    What a job raises is handed to `keep` in words, and the others go on.

    Raises:
        LongviewError: a process ended unexpectedly.
    """
    device_named(device)
    if parallel <= 1 or len(jobs) < 2:
        place = torch.device(device)
        source = CellImages(ImageSet.open(data), place)
        timed, trained = _parted(jobs)
        _train(deque([*timed, *trained]).popleft, source, 1, deadline, keep)
        return
    count = torch.cuda.device_count() if device == "cuda" else 1
    streams = 1
    if device.startswith("cuda"):
        streams = STREAMS_SERVED if os.environ.get(SERVICE) else STREAMS
    _Workers(jobs, data, device, max(count, -(-parallel // streams)), streams, deadline).run(keep, count)


class _Workers:
    """Processes that take jobs from a queue."""

    def __init__(
        self, jobs: Sequence[Job], data: Path, device: str, number: int, streams: int, deadline: float | None
    ) -> None:
        self.jobs, self.data, self.device, self.number = jobs, data, device, number
        self.streams, self.deadline = streams, deadline
        # Spawned, not forked: a forked process cannot use the GPU.
        self.context = multiprocessing.get_context("spawn")

    def run(self, keep: Keep, devices: int) -> None:
        """Start them, and hand on what they bring."""
        timed, trained = _parted(self.jobs)
        measuring, todo, done = self.context.Queue(), self.context.Queue(), self.context.Queue()
        for queue, part in ((measuring, timed), (todo, trained)):
            for number, job in enumerate(part):
                queue.put((number, job))
        alone = [self.context.Event() for _ in range(devices)]
        processes = [
            self.context.Process(
                target=_work,
                args=(measuring if rank < devices else None, todo, done, alone, self.data, self._place(rank, devices),
                      rank % devices, self.streams, self.deadline),
                daemon=True,
            )
            for rank in range(self.number)
        ]  # fmt: skip
        for process in processes:
            process.start()
        try:
            self._collect(processes, done, keep)
        finally:
            for queue in (measuring, todo, done):
                queue.cancel_join_thread()
            for process in processes:
                process.terminate()

    def _place(self, rank: int, devices: int) -> str:
        return f"cuda:{rank % devices}" if self.device == "cuda" else self.device

    def _collect(self, processes: Sequence[Any], done: Any, keep: Keep) -> None:
        working = len(processes)
        while working:
            try:
                message = done.get(timeout=LOOK_AGAIN)
            except Empty:
                if self.deadline is not None and time.time() > self.deadline + LAST_WORDS:
                    return
                if any(process.exitcode not in (None, 0) for process in processes):
                    raise LongviewError("a process of the study ended unexpectedly (out of memory?): use a smaller "
                                        "--parallel; the same command goes on") from None  # fmt: skip
                continue
            if message is None:
                working -= 1
            else:
                keep(*message)


def _work(
    measuring: Any,
    todo: Any,
    done: Any,
    alone: Sequence[Any],
    data: Path,
    place: str,
    device_number: int,
    streams: int,
    deadline: float | None,
) -> None:
    """Measure, where that is this process's part, wait until all have, then train cells until there are none."""
    torch.set_num_threads(1)
    device = torch.device(place)

    def keep(job: Job, record: dict[str, Any] | str) -> None:
        done.put((job, record))

    with _on(device):
        source = CellImages(ImageSet.open(data), device)
        if measuring is not None:
            _train(lambda: measuring.get(timeout=LOOK_AGAIN)[1], source, 1, deadline, keep)
            alone[device_number].set()
        for event in alone:
            event.wait()
        _train(lambda: todo.get(timeout=LOOK_AGAIN)[1], source, streams, deadline, keep)
    done.put(None)


def _train(
    take: Callable[[], Job],
    source: CellImages,
    streams: int,
    deadline: float | None,
    keep: Keep,
) -> None:
    """Do the jobs that `take` gives, `streams` at a time, until there are no more or the time is over.

    It ends as well where a job has left the device unusable: the jobs are for other processes then.
    """
    running: list[_Running] = []
    more = True
    while more or running:
        if deadline is not None and time.time() > deadline:
            return
        while more and len(running) < streams:
            try:
                running.append(_Running(take(), source))
            except (Empty, IndexError):
                more = False
        for one in list(running):
            if one.turn(keep):
                running.remove(one)
                if not _usable(source.device):
                    return


class _Running:
    """A job on its own stream."""

    def __init__(self, job: Job, source: CellImages) -> None:
        self.job, self.device = job, source.device
        self.stream = torch.cuda.Stream(source.device) if source.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        cell = job.cell
        self.steps: Generator[None, None, dict[str, Any]] = (
            time_cell(cell.config, job.timed_steps, source)
            if job.timed_steps
            else image_cell(cell.config, cell.steps, source)
        )

    def turn(self, keep: Keep) -> bool:
        """Go on for a few steps; return whether the job is over."""
        try:
            with torch.cuda.stream(self.stream):  # None is the current one
                next(self.steps)
        except StopIteration as stop:
            keep(self.job, stop.value)
            return True
        except (LongviewError, RuntimeError) as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            keep(self.job, f"{type(error).__name__}: {error} ({Path(line.filename).name}, line {line.lineno})")
            return True
        return False


def _usable(device: torch.device) -> bool:
    """Return whether `device` still answers; a kernel that went wrong breaks it for the rest of the process."""
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError:
        return False
    return True


def _parted(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    return [job for job in jobs if job.timed_steps], [job for job in jobs if not job.timed_steps]


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    yield
