"""All cells of a study: those that are not there yet, within so many minutes, over several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.config import parse
from longview.data.dataset import PreparedData
from longview.data.simulator.lifelong import LifelongConfig, write_lifelong
from longview.errors import InputError, LongviewError
from longview.evaluation.ablation import ablation_summary
from longview.evaluation.environment import environment
from longview.evaluation.scaling import scaling_summary
from longview.training.devices import device_named
from longview.training.studies.config import Cell, StudyConfig
from longview.training.studies.records import Records
from longview.training.studies.timing import time_config
from longview.training.studies.workers import LEAST_SECONDS, finish_cell, reason, run_side_by_side


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
    kept, what was in the middle begins again. Times are measured when all cells are there, each configuration alone on
    the device, and only with `parallel` 1: cells that train side by side slow each other.

    Args:
        study: from `load_study`.
        out: directory of the study: `cells.json`, and simulated data.
        device: where to train; `cuda` uses all GPUs where `parallel` is more than one.
        parallel: cells at a time over all devices, each in a process of its own.
        max_minutes: stop after so many; the data are made in this time too.
        data: a prepared data set in place of the study's.
        note: what is told of the progress.

    Raises:
        InputError: settings that are no configuration, no such device, or cells in `out` of other data.
        LongviewError: cells failed; the message names them, the others are kept.
    """
    deadline = None if max_minutes is None else time.time() + 60 * max_minutes
    device_named(device)
    out = Path(out)
    cells = study.cells()
    for cell in cells:
        if cell.config.task != "retrieval":
            raise InputError(f"{cell.config.name}: studies measure retrieval, and the task is {cell.config.task}")
    records = Records(out / "cells.json")
    opened = open_data(study, out, data, note)
    records.open(opened)
    mark = opened.fingerprint
    pending = [cell for cell in cells if cell.key(mark) not in records.cells]
    note(f"{len(cells) - len(pending)} of {len(cells)} cells are there")
    keep = _Keeper(records, mark, len(pending), note)
    stopped = (
        run_side_by_side(pending, opened, device, deadline, keep, parallel)
        if parallel > 1 and len(pending) > 1
        else _one_by_one(pending, opened, device, deadline, keep)
    )
    if keep.failures:
        raise LongviewError(f"{len(keep.failures)} cells failed: {'; '.join(keep.failures)}")
    if stopped is None and parallel == 1:
        stopped = _measure(cells, opened, device, deadline, records, note)
    elif stopped is None and any(cell.time_key(mark) not in records.times for cell in cells):
        note("times are not measured beside other work: the same command with --parallel 1 measures them")
    return Progress(sum(cell.key(mark) in records.cells for cell in cells), len(cells), stopped)


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
    data = records.described()
    known: list[tuple[dict[str, Any], dict[str, Any]]] = []
    missing = 0
    for cell in study.cells():
        mark = data["fingerprint"]
        record = records.with_seconds(cell.key(mark), cell.time_key(mark))
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
        "data": data,
        "metric": study.metric,
        **make(study.metric, known, records.values["oracle"], study.compare),
        "config": study.model_dump(mode="json"),
        "measured_on": _machines(known),
        "environment": first["environment"],
        "written_with": environment(),
    }


def _machines(known: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return the hardware that times were measured on: they compare only where there is one entry."""
    found = dict.fromkeys(record["measured_on"] for _, record in known if record["measured_on"] is not None)
    return list(found)


class _Keeper:
    """Adds what cells came to, or why one failed."""

    def __init__(self, records: Records, fingerprint: str, pending: int, note: Callable[[str], None]) -> None:
        self.records, self.fingerprint, self.left, self.note = records, fingerprint, pending, note
        self.failures: list[str] = []

    def __call__(self, cell: Cell, record: dict[str, Any] | str) -> None:
        self.left -= 1
        named = f"{cell.config.name}, seed {cell.seed}"
        if isinstance(record, str):
            self.failures.append(f"{named}: {record}")
            self.note(f"failed: {named}: {record}; {self.left} cells left")
            return
        self.records.add(cell.key(self.fingerprint), {"labels": cell.labels, **record})
        metric = cell.config.loop.metric
        value = record["metrics"].get(metric)
        shown = "" if value is None else f", {metric} {value:.4f}"
        self.note(f"{named}{shown}; {self.left} cells left")


def _one_by_one(
    cells: Sequence[Cell], data: PreparedData, device: str, deadline: float | None, keep: _Keeper
) -> str | None:
    """Run cells here; return why that stopped before the end, or None."""
    for cell in cells:
        record = finish_cell(cell, data, device, deadline)
        if record is None:
            return reason(deadline)
        keep(cell, record)
    return None


def _measure(
    cells: Sequence[Cell],
    data: PreparedData,
    device: str,
    deadline: float | None,
    records: Records,
    note: Callable[[str], None],
) -> str | None:
    """Measure the times of every configuration that has none; return why that stopped before the end, or None."""
    waiting = {cell.time_key(data.fingerprint): cell for cell in reversed(cells)}
    waiting = {key: cell for key, cell in waiting.items() if key not in records.times}
    for done, (key, cell) in enumerate(waiting.items(), 1):
        if deadline is not None and deadline - time.time() < LEAST_SECONDS:
            return "max_minutes"
        times = time_config(cell.config, data, device_named(device))
        records.add_times(key, times)
        note(f"{cell.config.name}: a step takes {1e3 * times['step']:.1f} ms; {len(waiting) - done} left to measure")
    return None
