"""What a study keeps of every finished cell: one JSON file, rewritten whole after each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from longview.data.dataset import PreparedData
from longview.data.simulator.oracle import Oracle, expected_hits, expected_ndcg
from longview.errors import InputError
from longview.evaluation.study_quality import pack
from longview.files import write_json

SCHEMA_VERSION = 1


class Records:
    """The file `cells.json` of a study: what its data are, the record of each finished cell by key, and times.

    Drawing needs nothing else. `oracle` (simulated data only) holds, for the test target of each user, what made it
    and the best NDCG@10 and HR@10 that can be expected of it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "data": None, "oracle": None, "cells": {}}
        if not file.exists():
            return
        try:
            self.values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: damaged ({error}); give the study another directory") from None
        if self.values.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{file}: not schema version {SCHEMA_VERSION} of a study; give the study another directory"
            )

    @property
    def data(self) -> dict[str, Any] | None:
        """Name, fingerprint and sizes of the data, or None before the first cell."""
        return self.values["data"]  # type: ignore[no-any-return]

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """The records by key."""
        return self.values["cells"]  # type: ignore[no-any-return]

    @property
    def times(self) -> dict[str, dict[str, Any]]:
        """What steps and requests take, each alone on the device, by the `time_key` of a cell."""
        return self.values.setdefault("times", {})  # type: ignore[no-any-return]

    def open(self, data: PreparedData) -> None:
        """Say which data the cells are of, before the first.

        Raises:
            InputError: the file has cells of other data.
        """
        if not self.are_of(data.meta.name, data.fingerprint):
            return
        self.values["data"] |= {
            "users": data.num_users,
            "items": data.num_items,
            "events": data.num_events,
            "simulated": data.meta.simulated,
            "simulator": data.meta.card.get("config") if data.meta.simulated else None,
            "exclude_seen": not data.meta.repeats,
            "split": data.split.describe(),
        }
        self.values["oracle"] = _oracle(data)
        self.save()

    def are_of(self, name: str, fingerprint: str) -> bool:
        """Say which data the cells are of; return whether nobody had said so before.

        Raises:
            InputError: the file has cells of other data.
        """
        if self.data is None:
            self.values["data"] = {"name": name, "fingerprint": fingerprint}
            return True
        if self.data["fingerprint"] != fingerprint:
            raise InputError(
                f"{self.file}: has cells of {self.data['name']} (fingerprint {self.data['fingerprint']}), and the "
                f"data are {name} (fingerprint {fingerprint}); give the study another directory"
            )
        return False

    def described(self) -> dict[str, Any]:
        """Return `data`.

        Raises:
            InputError: no cell is there yet.
        """
        if self.data is None or not self.cells:
            raise InputError(f"{self.file}: no cell of the study is there yet; run it without --draw")
        return self.data

    def save(self) -> None:
        """Write the file."""
        write_json(self.file, self.values)

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Keep the record of a finished cell."""
        self.cells[key] = record
        self.save()

    def add_times(self, key: str, times: dict[str, Any]) -> None:
        """Keep the measured times of a configuration."""
        self.times[key] = times
        self.save()

    def with_seconds(self, key: str, time_key: str) -> dict[str, Any] | None:
        """Return the record of a cell with its `seconds` (`step`, `training`: all steps, `request`).

        None where there is no record; `seconds` and `measured_on` are None where no time was measured.
        """
        record = self.cells.get(key)
        if record is None:
            return None
        found = self.times.get(time_key)
        if found is None:
            return {**record, "seconds": None, "measured_on": None}
        seconds = {"step": found["step"], "training": found["step"] * record["steps"], "request": found["request"]}
        of = found["environment"]
        return {**record, "seconds": seconds, "measured_on": of["accelerator"] or of["processor"]}


def _oracle(data: PreparedData) -> dict[str, Any] | None:
    """Return what can be known of each test target, in the order of the users, or None where nobody knows."""
    if data.path is None or not (data.path / "oracle.arrow").exists():
        return None
    oracle = Oracle.open(data.path).select("test")
    row = oracle.column("row")
    order = np.argsort(row)
    if not np.array_equal(row[order], data.split.test.target):
        raise InputError(f"{data.path}: its oracle does not describe its test targets; simulate the data again")
    component = oracle.table["component"].combine_chunks()

    def expected(window: int | None) -> dict[str, str]:
        better, tied = oracle.column("better", window)[order], oracle.column("tied", window)[order]
        return {"ndcg@10": pack(expected_ndcg(better, tied, 10)), "hr@10": pack(expected_hits(better, tied, 10))}

    return {
        "names": component.dictionary.to_pylist(),
        "component": pack(component.indices.to_numpy()[order]),
        "windows": {"all": expected(None), **{str(window): expected(window) for window in oracle.windows}},
    }
