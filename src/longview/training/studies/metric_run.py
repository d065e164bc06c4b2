"""All cells of a study of metric learning: those that are not there yet, several at a time on each device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longview.data.images import ImageSet
from longview.errors import InputError, LongviewError
from longview.evaluation.environment import environment
from longview.evaluation.metric_study import metric_summary
from longview.training.studies.metric_config import MetricCell, MetricStudyConfig
from longview.training.studies.metric_workers import Job, run_jobs
from longview.training.studies.records import Records
from longview.training.studies.run import Progress
from longview.training.studies.workers import LEAST_SECONDS

SAVE_EVERY = 2.0  # seconds between writes of the records while cells come in


class MetricRecords(Records):
    """The file `cells.json` of a study of metric learning."""

    def begin(self, images: ImageSet) -> None:
        """Say which images the cells are of, before the first.

        Raises:
            InputError: the file has cells of other images.
        """
        if self.are_of(images.meta.name, images.fingerprint):
            self.values["data"] |= {
                "training_images": len(images.train),
                "training_classes": images.train.num_classes,
                "unseen_images": len(images.query),
                "unseen_classes": images.query.num_classes,
            }


def run_metric_cells(
    study: MetricStudyConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    parallel: int = 1,
    max_minutes: float | None = None,
    data: str | Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Run the cells of `study` that `out/cells.json` does not have, and keep each when it is done.

    A study that was stopped goes on with the same call; a cell is short, so what was in the middle begins again.

    Args:
        study: from `load_metric_study`.
        out: directory of `cells.json`.
        device: where to train; `cuda` uses all GPUs.
        parallel: cells at a time, over all GPUs; see `metric_workers`. `timed_steps` are measured alone, before.
        max_minutes: stop after so many.
        data: a prepared set of images in place of the study's.
        note: what is told of the progress.

    Raises:
        InputError: settings that are no configuration, or cells in `out` of other images.
        LongviewError: cells failed; the others are kept.
    """
    deadline = None if max_minutes is None else time.time() + 60 * max_minutes
    images = ImageSet.open(data or study.data)
    records = MetricRecords(Path(out) / "cells.json")
    records.begin(images)
    cells = study.cells(len(images.train))
    distinct = {cell.key(images.fingerprint): cell for cell in reversed(cells)}  # a kind may come in several regimes
    pending = [cell for cell in cells if distinct.get(cell.key(images.fingerprint)) is cell]
    pending = [cell for cell in pending if cell.key(images.fingerprint) not in records.cells]
    timed = _untimed(study, records, images) if pending else []
    note(f"{sum(cell.key(images.fingerprint) in records.cells for cell in cells)} of {len(cells)} cells are there")
    keeper = _Keeper(records, images.fingerprint, len(pending), parallel, note)
    jobs = [*(Job(cell, study.timed_steps) for cell in timed), *(Job(cell) for cell in pending)]
    run_jobs(jobs, images.path, device, parallel, None if deadline is None else deadline - LEAST_SECONDS, keeper)
    keeper.close()
    done = sum(cell.key(images.fingerprint) in records.cells for cell in cells)
    return Progress(done, len(cells), None if done == len(cells) else "max_minutes")


def metric_study_summary(study: MetricStudyConfig, out: str | Path, *, command: str) -> dict[str, Any]:
    """Return what is known of a study so far, from `out/cells.json` alone: the result file of `longview study`.

    Raises:
        InputError: no cell is there yet.
    """
    records = MetricRecords(Path(out) / "cells.json")
    data = records.described()
    fingerprint = data["fingerprint"]
    cells = study.cells(data["training_images"])
    known = [(cell.labels, records.cells[key]) for cell in cells if (key := cell.key(fingerprint)) in records.cells]
    if not known:
        raise InputError(f"{records.file}: has cells, but of another study than {study.name!r}")
    times = [
        (cell.labels, records.times[key])
        for cell in cells[: len(cells) // len(study.seeds)]
        if (key := cell.time_key(fingerprint)) in records.times
    ]
    return {
        "study": study.kind,
        "name": study.name,
        "command": command,
        "complete": len(known) == len(cells),
        "missing_cells": len(cells) - len(known),
        "data": data,
        "protocol": "leave-one-out among all images of classes that nobody trained on; the last weights, chosen by "
        "nothing",
        "steps": study.steps,
        "seeds": list(study.seeds),
        **metric_summary(known, times, reference=study.reference),
        "config": study.model_dump(mode="json"),
        "environment": known[0][1]["environment"],
        "written_with": environment(),
    }


def _untimed(study: MetricStudyConfig, records: MetricRecords, images: ImageSet) -> list[MetricCell]:
    """Return one cell of each kind whose step has not been measured."""
    if not study.timed_steps:
        return []
    kinds = study.cells(len(images.train))
    distinct = {cell.time_key(images.fingerprint): cell for cell in kinds[: len(kinds) // len(study.seeds)]}
    return [cell for key, cell in distinct.items() if key not in records.times]


class _Keeper:
    """Keeps what cells came to."""

    def __init__(
        self, records: MetricRecords, fingerprint: str, pending: int, parallel: int, note: Callable[[str], None]
    ) -> None:
        self.records, self.fingerprint, self.left, self.note = records, fingerprint, pending, note
        self.parallel, self.failed = parallel, list[str]()
        self.environment = environment()
        self._saved = 0.0

    def __call__(self, job: Job, record: dict[str, Any] | str) -> None:
        """Take in the record of a job, or the reason that there is none."""
        cell = job.cell
        if isinstance(record, str):
            self.failed.append(f"{cell.config.name}, seed {cell.seed}: {record}")
            self.note(f"failed: {self.failed[-1]}")
            return
        if job.timed_steps:
            self.records.times[cell.time_key(self.fingerprint)] = {**record, "environment": self.environment}
        else:
            self.left -= 1
            more = {"labels": cell.labels, "parallel": self.parallel, "environment": self.environment}
            self.records.cells[cell.key(self.fingerprint)] = {**record, **more}
            self.note(
                f"{cell.config.name}, seed {cell.seed}: recall@1 {record['metrics']['recall@1']:.4f}; "
                f"{self.left} cells left"
            )
        if time.time() - self._saved > SAVE_EVERY:
            self.records.save()
            self._saved = time.time()

    def close(self) -> None:
        """Write what is there.

        Raises:
            LongviewError: a cell failed.
        """
        if self.records.cells or self.records.times:
            self.records.save()
        if self.failed:
            raise LongviewError(f"{len(self.failed)} cells failed, and the others are kept; first: {self.failed[0]}")
