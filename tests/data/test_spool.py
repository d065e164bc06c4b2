"""Columns on disk, and their way into one Arrow file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longview.data import mapped
from longview.data.mapped import MappedColumns
from longview.data.spool import Spool


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    with Spool(tmp_path / "rows", {"a": np.int32, "b": np.float32}) as spool:
        spool.append({"a": [1, 2], "b": [0.5, np.nan]})
        spool.append({"a": [], "b": []})
        spool.write(4, {"a": [5], "b": [5]})
        spool.write(2, {"a": [3, 4], "b": [3, 4]})
        assert spool.rows == 5
        assert spool.read(0, 5)["a"].tolist() == [1, 2, 3, 4, 5]
        assert spool.read(1, 3, "b")["b"].tolist()[1] == 3
        spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_chunks_cover_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.data.spool.CHUNK_ROWS", 3)
    with Spool(tmp_path / "rows", {"a": np.int64}) as spool:
        spool.append({"a": np.arange(7)})
        found = [(start, rows["a"].tolist()) for start, rows in spool.chunks("a")]
    assert found == [(0, [0, 1, 2]), (3, [3, 4, 5]), (6, [6])]


def test_columns_become_one_record_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE_BYTES", 1000)  # several pieces, whose pages are given back in between
    values = np.arange(10_000)
    with Spool(tmp_path / "rows", {"item": np.int32, "timestamp": np.int64}) as spool:
        spool.append({"item": values, "timestamp": values * 7})
        columns = MappedColumns(spool)
        assert columns["item"].tolist() == values.tolist()
        columns.release()
        assert columns["timestamp"][-1] == 69_993
        columns.write_arrow(tmp_path / "events.arrow")
    with pa.memory_map(str(tmp_path / "events.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 1
        table = reader.read_all()
    assert table.schema == pa.schema([("item", pa.int32()), ("timestamp", pa.int64())])
    assert table["item"].to_pylist() == values.tolist()
    assert table["timestamp"].to_pylist() == (values * 7).tolist()
