"""Sorting on disk: the same as a stable sort in memory, whatever the partitions; duplicates merged as documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longview.data import order, spool
from longview.data.encode import Encoded
from longview.data.ids import NO_CODE, Dictionary
from longview.data.order import Numbering, merge_duplicates, order_rows
from longview.data.spool import Spool

events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40)


def quiet(stage: str, done: int, total: int) -> None:
    pass


def sort(folder: Path, rows: list[tuple[int, int, int]], keep: bool) -> tuple[list[tuple[int, int, int]], int, int]:
    user, item, key = np.array(rows).T
    unsorted = Spool(folder / "unsorted", {"user": np.uint32, "item": np.uint32, "key": np.int64})
    for start in range(0, len(rows), 7):
        piece = slice(start, start + 7)
        unsorted.append({"user": user[piece], "item": item[piece], "key": key[piece]})
    encoded = Encoded(unsorted, Dictionary(), Dictionary(), [])
    same = np.arange(10, dtype=np.int32)
    found = order_rows(encoded, Numbering(same, same, []), folder, keep_duplicates=keep, report=quiet)
    columns = found.spool.read(0, found.spool.rows)
    result = list(zip(columns["user"].tolist(), columns["item"].tolist(), columns["key"].tolist(), strict=True))
    return result, found.duplicates, found.out_of_order


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=events, partition=st.integers(1, 50), chunk=st.integers(1, 20))
def test_sorting_on_disk_is_a_stable_sort(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[int, int, int]],
    partition: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(order, "PARTITION_ROWS", partition)
    monkeypatch.setattr(spool, "CHUNK_ROWS", chunk)
    expected = sorted(rows, key=lambda row: (row[0], row[2]))
    assert sort(tmp_path_factory.mktemp("keep"), rows, True)[0] == expected
    found, duplicates, _ = sort(tmp_path_factory.mktemp("merge"), rows, False)
    assert found == list(dict.fromkeys(expected))  # the first of each stays, in its place
    assert duplicates == len(rows) - len(set(rows))


def test_events_that_came_before_earlier_ones_are_counted(tmp_path: Path) -> None:
    rows = [(0, 0, 5), (1, 0, 1), (0, 1, 3), (0, 2, 9), (1, 1, 2)]
    assert sort(tmp_path, rows, True)[2] == 1


def test_working_files_are_gone_when_they_are_done(tmp_path: Path) -> None:
    sort(tmp_path, [(0, 0, 1), (1, 0, 1)], True)
    assert [path.name for path in tmp_path.iterdir()] == ["sorted"]


def test_merging_unites_actions_and_takes_the_last_strength() -> None:
    nan = np.float32(np.nan)
    rows = {
        "user": np.array([0, 0, 0, 0, 1]),
        "item": np.array([5, 6, 5, 5, 5]),
        "key": np.array([7, 7, 7, 7, 7]),
        "action": np.array([1, 2, 4, 1, 8]),
        "strength0": np.array([1.0, 2.0, 3.0, nan, nan], np.float32),
    }
    merged = merge_duplicates(rows)
    assert merged["item"].tolist() == [5, 6, 5]
    assert merged["action"].tolist() == [5, 2, 8]
    assert merged["strength0"].tolist()[:2] == [3.0, 2.0]
    assert np.isnan(merged["strength0"][2])
    assert rows["action"].tolist() == [1, 2, 4, 1, 8]  # what was given is not changed


def test_labels_become_bits(tmp_path: Path) -> None:
    unsorted = Spool(
        tmp_path / "unsorted",
        {"user": np.uint32, "item": np.uint32, "key": np.int64, "label0": np.uint32, "label1": np.uint32},
    )
    zeros = np.zeros(3, np.uint32)
    unsorted.append(
        {"user": zeros, "item": [0, 1, 2], "key": [1, 2, 3], "label0": [1, 0, NO_CODE], "label1": [0, 0, 1]}
    )
    one = np.zeros(1, np.int32)
    numbering = Numbering(one, np.arange(3, dtype=np.int32), [np.array([1, 2, 0]), np.array([4, 0, 0])])
    found = order_rows(
        Encoded(unsorted, Dictionary(), Dictionary(), []), numbering, tmp_path, keep_duplicates=False, report=quiet
    )
    assert found.spool.read(0, 3)["action"].tolist() == [6, 5, 0]
