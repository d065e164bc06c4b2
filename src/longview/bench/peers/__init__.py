"""Other projects, timed in interpreters of their own on the same log in the same command."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from longview.data.dataset import PreparedData
from longview.errors import InputError, LongviewError
from longview.training.config import RunConfig

RECTOOLS = Path(__file__).parent / "rectools_sasrec.py"


def interpreter(python: Path) -> Path:
    """Return the place of an interpreter that is named by path or by what `PATH` knows; it need not be Longview's.

    Raises:
        InputError: there is none.
    """
    found = shutil.which(python)
    if found is None:
        raise InputError(f"--peer-python {python}: no such program; give an interpreter that has RecTools")
    return Path(found).absolute()  # and not resolved: an environment is found by the link in it


def time_rectools(python: Path, data: PreparedData, run: RunConfig, *, threads: int, epochs: int = 1) -> dict[str, Any]:
    """Time SASRec of RecTools on the training events of `data` with the width, depth and batches of `run`.

    Args:
        python: an interpreter that has RecTools, of `interpreter`; nothing of Longview is needed there.
        data, run: the log and the settings to match.
        threads: for its matrix products.
        epochs: how many to train.

    Returns:
        `model, seconds_per_epoch, seconds_to_recommend` (top 10 for all users), `versions`.

    Raises:
        InputError: it is no program that this machine can run.
        LongviewError: it failed; its last lines are in the message.
    """
    settings = {
        "threads": threads,
        "seed": run.loop.seed,
        "width": run.model.width,
        "layers": run.model.layers,
        "heads": run.model.heads,
        "max_length": run.model.max_length,
        "num_negatives": run.loss.num_negatives,
        "batch_size": run.batches.batch_size or 128,
    }
    with tempfile.TemporaryDirectory() as scratch:
        log, out = Path(scratch) / "log.csv", Path(scratch) / "out.json"
        _write_training_log(data, log)
        command = [str(python), str(RECTOOLS), str(log), str(out), str(epochs), json.dumps(settings)]
        # How threads wait is a choice of our command line (`longview.cli.main`); the other project gets its own.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, env=environment)
        except OSError as error:
            raise InputError(
                f"--peer-python {python}: {error.strerror}; give an interpreter that has RecTools"
            ) from None
        if done.returncode:
            last = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise LongviewError(f"RecTools failed in {python.name}: {last}")
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {**report, "settings": settings}


def _write_training_log(data: PreparedData, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "order"])
        for user, (start, end) in enumerate(zip(data.offsets[:-1], data.split.train_end, strict=True)):
            items = data.items[start:end].tolist()
            writer.writerows(zip(np.full(len(items), user).tolist(), items, range(len(items)), strict=True))
