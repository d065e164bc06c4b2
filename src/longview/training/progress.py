"""What a run shows while it trains: a live line on a terminal, plain lines elsewhere, nothing by default."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_SECONDS = 10.0  # between plain lines within an epoch
SHOWN = ("hr@10", "ndcg@10", "recall@1", "map@r", "mrr", "ne", "auc", "gauc")  # of a validation, in its line


@dataclass(frozen=True)
class Status:
    """One look at a run: `epoch` and `step` count from 1; rates in events a second; times in seconds; bytes.

    On images, an event is an image.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    events_per_second: float
    epoch_seconds_left: float
    seconds_left: float
    memory: int
    metric: str
    last: float | None
    best: float | None

    def text(self, counted: str = "events") -> str:
        """Return everything but the epoch and step in one line; `counted` is what events are called."""
        metric = "" if self.last is None else f", {self.metric} {self.last:.4f} (best {self.best:.4f})"
        return (
            f"loss {self.loss:.4f}, {self.events_per_second:,.0f} {counted}/s, "
            f"epoch {duration(self.epoch_seconds_left)}, all ≤ {duration(self.seconds_left)}, "
            f"{self.memory / 2**30:.2f} GiB{metric}"
        )


class TrainingProgress:
    """Shows nothing; the base of the others. Used as a context around a run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, status: Status) -> None:
        """A batch has been trained on."""

    def evaluation(self, epoch: int, metrics: dict[str, float], best: bool) -> None:
        """An epoch has been evaluated on validation; `best` so far or not."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class PlainProgress(TrainingProgress):
    """Lines: one an evaluation, and at most one every ten seconds in between; `counted` is what events are called."""

    def __init__(self, console: Console, counted: str = "events") -> None:
        self.console, self.counted, self._shown = console, counted, time.monotonic()

    def step(self, status: Status) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(
                f"epoch {status.epoch}/{status.epochs} step {status.step}/{status.steps}: {status.text(self.counted)}"
            )

    def evaluation(self, epoch: int, metrics: dict[str, float], best: bool) -> None:
        self.note(_evaluation_line(epoch, metrics, best))

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(PlainProgress):
    """One line that moves, with a bar for the epoch; evaluations and notes stay above it."""

    def __enter__(self) -> Self:
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(24), TextColumn("{task.description}"),
            console=self.console, transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._task: TaskID = self._bar.add_task("starting", epoch="1", total=None)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, status: Status) -> None:
        self._bar.update(
            self._task, completed=status.step, total=status.steps, description=status.text(self.counted),
            epoch=f"{status.epoch}/{status.epochs}",
        )  # fmt: skip


def make_progress(console: Console, counted: str = "events") -> TrainingProgress:
    """Return the live display where `console` is a terminal, plain lines where it is not.

    `counted`: what the loop counts, as the line calls it: `events`, or `images`.
    """
    return LiveProgress(console, counted) if console.is_terminal else PlainProgress(console, counted)


def memory_in_use(device: torch.device) -> int:
    """Return bytes: resident memory of the process on a CPU, the allocator's peak on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0  # not Linux
    return pages * 4096


def duration(seconds: float) -> str:
    """Return a time for people.

    Example:
        >>> [duration(s) for s in (7.2, 90, 4000)]
        ['7 s', '1:30 min', '1:06 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _evaluation_line(epoch: int, metrics: dict[str, float], best: bool) -> str:
    known = [name for name in (*SHOWN, *(n for n in metrics if n.endswith(".mae"))) if name in metrics]
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in known)
    return f"epoch {epoch} validation: {shown}{' (best)' if best else ''}"
