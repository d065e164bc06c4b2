"""Cells of a study one by one and side by side: over processes, and over all GPUs."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError, LongviewError
from longview.training.running import InterruptedRunError
from longview.training.studies.cell import run_cell
from longview.training.studies.config import Cell

LEAST_SECONDS = 5.0  # with less time left no cell is begun

Keep = Callable[[Cell, "dict[str, Any] | str"], None]


def finish_cell(cell: Cell, data: PreparedData, device: str, deadline: float | None) -> dict[str, Any] | str | None:
    """Return the record of a cell, in words why it failed, or None where it was stopped or there is no time left."""
    if deadline is not None and deadline - time.time() < LEAST_SECONDS:
        return None
    try:
        return run_cell(cell.config, data, device=device, choose=cell.choose, deadline=deadline)
    except InterruptedRunError:
        return None
    except (LongviewError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def reason(deadline: float | None) -> str:
    """Return why a study stopped: its minutes are over, or somebody asked it to."""
    return "max_minutes" if deadline is not None and time.time() >= deadline - LEAST_SECONDS else "interrupted"


def run_side_by_side(
    cells: Sequence[Cell], data: PreparedData, device: str, deadline: float | None, keep: Keep, parallel: int
) -> str | None:
    """Run `cells`, `parallel` at a time; return why that stopped before the end, or None.

    Raises:
        InputError: data that are not on disk, where every process opens them for itself.
    """
    path = data.path
    if path is None:
        raise InputError("cells in several processes need a data set on disk: every process opens it for itself")
    places = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if device == "cuda" else [device]
    waiting, stopped = deque(cells), None
    # Spawned, not forked: a forked process cannot use the GPU.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {
            place: stack.enter_context(ProcessPoolExecutor(-(-parallel // len(places)), mp_context=context))
            for place in places
        }
        running: dict[Future[Any], tuple[Cell, str]] = {}

        def begin(place: str) -> None:
            if waiting:
                cell = waiting.popleft()
                running[pools[place].submit(_in_process, cell, path, place, deadline)] = cell, place

        for turn in range(parallel):
            begin(places[turn % len(places)])
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, place = running.pop(future)
                record = future.result()
                if record is None:
                    stopped = reason(deadline)
                    waiting.clear()
                else:
                    keep(cell, record)
                    begin(place)
    return stopped


def _in_process(cell: Cell, data: Path, device: str, deadline: float | None) -> dict[str, Any] | str | None:
    """Do what `finish_cell` does, in a process that has only been started."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return finish_cell(cell, PreparedData.open(data), device, deadline)
