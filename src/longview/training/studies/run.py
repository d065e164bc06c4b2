"""All cells of a study: those that are not there yet, within so many minutes, over several processes."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.config import parse
from longview.data.dataset import PreparedData
from longview.data.simulator.lifelong import LifelongConfig, write_lifelong
from longview.errors import InputError
from longview.evaluation.ablation import ablation_summary
from longview.evaluation.environment import environment
from longview.evaluation.scaling import scaling_summary
from longview.training.running import InterruptedRunError
from longview.training.studies.cell import run_cell
from longview.training.studies.config import Cell, StudyConfig
from longview.training.studies.records import Records

LEAST_SECONDS = 5.0  # with less time left no cell is begun


@dataclass(frozen=True)
class Progress:
    """How far a study is: `done` of `cells`, and why it stopped before the end, or None."""

    done: int
    cells: int
    stopped: str | None = None


def run_cells(
    study: StudyConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    parallel: int = 1,
    max_minutes: float | None = None,
    data: str | Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Run the cells of `study` that `out/cells.json` does not have, and add each to it when it is done.

    A study that was stopped, by time, by a signal or by being killed, goes on with the same call: finished cells are
    kept, an unfinished one resumes at its checkpoint.

    Args:
        study: from `load_study`.
        out: directory of the study: `cells.json`, the runs in progress, and simulated data.
        device: where to train.
        parallel: cells at a time, each in a process of its own. They slow each other: measure times with 1.
        max_minutes: stop after so many, at a checkpoint; the data are made in this time too.
        data: a prepared data set in place of the study's.
        note: what is told of the progress.

    Raises:
        InputError: settings that are no configuration, or cells in `out` of other data.
    """
    deadline = None if max_minutes is None else time.time() + 60 * max_minutes
    out = Path(out)
    cells = study.cells()
    for cell in cells:
        if cell.config.task != "retrieval":
            raise InputError(f"{cell.config.name}: studies measure retrieval, and the task is {cell.config.task}")
    records = Records(out / "cells.json")
    opened = open_data(study, out, data, note)
    records.open(opened)
    pending = [cell for cell in cells if cell.key(opened.fingerprint) not in records.cells]
    note(f"{len(cells) - len(pending)} of {len(cells)} cells are there")
    run = _run_parallel if parallel > 1 and len(pending) > 1 else _run_one_by_one
    stopped = run(pending, opened, out, device, deadline, _Keeper(records, out, len(pending), note, parallel), parallel)
    done = sum(cell.key(opened.fingerprint) in records.cells for cell in cells)
    return Progress(done, len(cells), stopped)


def open_data(
    study: StudyConfig, out: Path, data: str | Path | None = None, note: Callable[[str], None] = lambda _: None
) -> PreparedData:
    """Open the data of a study; simulated ones are written to `out/lifelong` first, once."""
    if data is not None or study.data.path is not None:
        return PreparedData.open(data or study.data.path or "")
    rules = parse(LifelongConfig, study.data.lifelong or {}, f"study {study.name!r}, data.lifelong")
    if not (out / "lifelong" / "meta.json").exists():
        note(f"simulating {rules.users:,} histories of up to {rules.max_history:,} events")
        return write_lifelong(rules, out / "lifelong")
    opened = PreparedData.open(out / "lifelong")
    if opened.meta.card.get("config") != rules.model_dump(mode="json"):
        raise InputError(f"{out / 'lifelong'}: simulated by other rules; give the study another directory")
    return opened


def summary(study: StudyConfig, out: str | Path, *, command: str) -> dict[str, Any]:
    """Return what is known of a study so far, from `out/cells.json` alone: the result file of `longview study`.

    Raises:
        InputError: no cell is there yet.
    """
    records = Records(Path(out) / "cells.json")
    if records.data is None or not records.cells:
        raise InputError(f"{records.file}: no cell of the study is there yet; run it without --draw")
    known: list[tuple[dict[str, Any], dict[str, Any]]] = []
    missing = 0
    for cell in study.cells():
        record = records.cells.get(cell.key(records.data["fingerprint"]))
        missing += record is None
        known += [(labels, record) for labels in (cell.labels, *cell.aliases) if record is not None]
    if not known:
        raise InputError(f"{records.file}: has cells, but of another study than {study.name!r}")
    order = [labels for labels, _ in study.kinds()]
    known.sort(key=lambda one: order.index(one[0]))
    make = ablation_summary if study.kind == "ablation" else scaling_summary
    first = known[0][1]
    return {
        "study": study.kind,
        "name": study.name,
        "command": command,
        "complete": missing == 0,
        "missing_cells": missing,
        "data": records.data,
        "metric": study.metric,
        **make(study.metric, known, records.values["oracle"], study.compare),
        "config": study.model_dump(mode="json"),
        "measured_on": _machines(known),
        "environment": first["environment"],
        "written_with": environment(),
    }


def _machines(known: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the hardware that cells ran on, and how many at a time: times compare only where there is one entry."""
    found: list[dict[str, Any]] = []
    for _, record in known:
        one = {
            "hardware": record["environment"]["accelerator"] or record["environment"]["processor"],
            "cells_at_a_time": record["parallel"],
        }
        if one not in found:
            found.append(one)
    return found


class _Keeper:
    """Adds what cells came to, and clears their runs away."""

    def __init__(self, records: Records, out: Path, pending: int, note: Callable[[str], None], parallel: int) -> None:
        self.records, self.out, self.left, self.note = records, out, pending, note
        self.parallel = parallel

    def __call__(self, key: str, cell: Cell, record: dict[str, Any]) -> None:
        self.left -= 1
        self.records.add(key, {"labels": cell.labels, **record, "parallel": self.parallel})
        shutil.rmtree(self.out / "runs" / key, ignore_errors=True)
        metric = cell.config.loop.metric
        value = record["metrics"].get(metric)
        shown = "" if value is None else f", {metric} {value:.4f}"
        self.note(f"{cell.config.name}, seed {cell.seed}{shown}; {self.left} cells left")


def _run_one_by_one(
    cells: Sequence[Cell], data: PreparedData, out: Path, device: str, deadline: float | None, keep: _Keeper, _: int
) -> str | None:
    for cell in cells:
        key = cell.key(data.fingerprint)
        try:
            record = _timely(cell, data, out / "runs" / key, device, deadline)
        except InterruptedRunError:
            return _reason(deadline)
        if record is None:
            return "max_minutes"
        keep(key, cell, record)
    return None


def _run_parallel(
    cells: Sequence[Cell],
    data: PreparedData,
    out: Path,
    device: str,
    deadline: float | None,
    keep: _Keeper,
    parallel: int,
) -> str | None:
    if data.path is None:
        raise InputError("cells in several processes need a data set on disk: every process opens it for itself")
    stopped = None
    # Spawned, not forked: a forked process cannot use the GPU.
    with ProcessPoolExecutor(parallel, mp_context=multiprocessing.get_context("spawn")) as pool:
        keys = [cell.key(data.fingerprint) for cell in cells]
        futures = {
            pool.submit(_in_process, cell, data.path, out / "runs" / key, device, deadline): (key, cell)
            for key, cell in zip(keys, cells, strict=True)
        }
        for future in as_completed(futures):
            record = future.result()
            if record is None:
                stopped = _reason(deadline)
            else:
                keep(*futures[future], record)
    return stopped


def _in_process(cell: Cell, data: Path, directory: Path, device: str, deadline: float | None) -> dict[str, Any] | None:
    """Return the record of a cell, or None where it was stopped."""
    try:
        return _timely(cell, PreparedData.open(data), directory, device, deadline)
    except InterruptedRunError:
        return None


def _timely(
    cell: Cell, data: PreparedData, directory: Path, device: str, deadline: float | None
) -> dict[str, Any] | None:
    """Return the record of a cell, or None where there is no time to begin it."""
    left = None if deadline is None else deadline - time.time()
    if left is not None and left < LEAST_SECONDS:
        return None
    return run_cell(cell.config, data, directory, device=device, seconds=left)


def _reason(deadline: float | None) -> str:
    return "max_minutes" if deadline is not None and time.time() >= deadline - LEAST_SECONDS else "interrupted"
