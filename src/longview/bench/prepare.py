"""How long `longview prepare` takes for a log of many rows, and how much memory at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from longview.errors import InputError, LongviewError
from longview.evaluation.environment import environment

PIECE = 1 << 20
EVENTS = np.array(["view", "like", "cart", "buy"])
START, SPAN = 1_600_000_000, 100_000_000  # seconds


def bench_prepare(*, rows: int = 10_000_000, seed: int = 0, folder: Path | None = None) -> dict[str, Any]:
    """Write a log of `rows` rows as CSV and as Parquet, and time the command on each.

    The log is seeded and in order of time, as a server writes it: `rows` / 100 users and `rows` / 200 items of skewed
    popularity, ids that are numbers (users) and text (items), a time in milliseconds and one of four actions. Each
    run is a process of its own; its peak memory is what the kernel counted, file pages it mapped included.

    Raises:
        InputError: fewer than a thousand rows.
        LongviewError: the command failed.
    """
    if rows < 1000:
        raise InputError(f"rows={rows}: at least 1,000")
    runs = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for kind in ("csv", "parquet"):
            log = Path(place) / f"log.{kind}"
            _write(log, rows, seed)
            runs[kind] = _run(log, Path(place) / "data")
            log.unlink()
    return {
        "benchmark": "prepare",
        **{f"{kind}_seconds": run["seconds"] for kind, run in runs.items()},
        **{f"{kind}_peak_gib": run["peak_gib"] for kind, run in runs.items()},
        "runs": runs,
        "settings": {"rows": rows, "seed": seed, "command": "longview prepare LOG --out DATA --json"},
        "environment": environment(),
    }


def _write(path: Path, rows: int, seed: int) -> None:
    """Write the log piece by piece: what this process holds would count as memory of those it starts."""
    sink: Any = None
    try:
        for piece in _pieces(rows, seed):
            if sink is None:
                writer = pq.ParquetWriter if path.suffix == ".parquet" else pa_csv.CSVWriter
                sink = writer(str(path), piece.schema)
            sink.write_table(piece)
    finally:
        if sink is not None:
            sink.close()


def _pieces(rows: int, seed: int) -> Iterator[pa.Table]:
    users, items = max(2, rows // 100), max(2, rows // 200)
    for start in range(0, rows, PIECE):
        generator = np.random.default_rng((seed, start))
        count = min(PIECE, rows - start)
        user = (users * generator.random(count) ** 3).astype(np.int64)
        item = (items * generator.random(count) ** 4).astype(np.int64)
        moment = np.sort(start + generator.random(count) * count) / rows
        action = EVENTS[np.minimum(generator.geometric(0.7, count) - 1, len(EVENTS) - 1)]
        yield pa.table(
            {
                "user_id": user * 7919 % 1_000_000_007,
                "item_id": pa.array(np.char.add("B", (item * 104_729 % 100_000_007).astype(str))),
                "timestamp": ((START + SPAN * moment) * 1000).astype(np.int64),
                "event": pa.array(action),
            }
        )


def _run(log: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "longview", "prepare", str(log), "--out", str(out), "--json", "--overwrite"]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as printed, subprocess.Popen(command, stdout=printed) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise LongviewError(f"the command ended with exit status {process.returncode}: {' '.join(command)}")
        printed.seek(0)
        card = json.load(printed)["card"]
    return {
        "seconds": round(seconds, 2),
        "peak_gib": round(usage.ru_maxrss / (1 << 20), 3),
        "rows_per_second": round(card["rows_read"] / seconds),
        "megabytes": round(log.stat().st_size / 1e6),
        "users": card["users"],
        "items": card["items"],
        "events": card["events"],
        "fingerprint": card["fingerprint"],
    }
