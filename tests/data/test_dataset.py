"""A prepared data set on disk: whole or absent, mapped, fingerprinted, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longview.data import PreparedData
from longview.data.dataset import fingerprint, write_prepared
from longview.data.meta import SplitSpec
from longview.errors import InputError

SPLIT = SplitSpec(kind="leave-last-out")


def small(target: Path, **changes: Any) -> PreparedData:
    values: dict[str, Any] = {
        "name": "small",
        "events": {
            "item": np.array([0, 1, 2, 2, 0], np.int32),
            "timestamp": np.array([10, 20, 30, 5, 6]),
            "action": np.array([1, 2, 3, 0, 1]),
            "strength_rating": np.array([1, 2, np.nan, 4, 5], np.float32),
        },
        "users": pa.table({"id": ["b", "ä\n,"], "length": [3, 2], "country": ["x", "y"]}),
        "items": pa.table({"id": ["i", "j", "k"], "title": ["I", None, "K"]}),
        "split": SPLIT,
        "actions": ["view", "buy"],
    }
    return write_prepared(target, **(values | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    small(tmp_path / "set")
    data = PreparedData.open(tmp_path / "set")
    assert (data.num_users, data.num_items, data.num_events) == (2, 3, 5)
    assert data.offsets.tolist() == [0, 3, 5]
    assert data.items.tolist() == [0, 1, 2, 2, 0]
    assert data.items.dtype == np.int32
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [10, 20, 30, 5, 6]
    assert data.actions is not None
    assert data.actions.tolist() == [1, 2, 3, 0, 1]
    assert np.isnan(data.strength("rating")[2])
    assert data.meta.time_range == (5, 30)
    assert data.users["country"].to_pylist() == ["x", "y"]
    assert data.user_ids.index(["ä\n,", "nobody"]).tolist() == [1, -1]
    assert data.item_ids.external(np.array([2, 0])).to_pylist() == ["k", "i"]


def test_columns_are_mapped_not_copied(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    total = 1_000_000
    small(
        tmp_path / "set",
        events={"item": np.zeros(total, np.int32), "timestamp": np.arange(total)},
        users=pa.table({"id": ["a"], "length": [total]}),
        actions=[],
    )
    data = PreparedData.open(tmp_path / "set")
    assert not data.items.flags.owndata
    assert data.timestamps is not None
    assert not data.timestamps.flags.owndata
    assert not data.items.flags.writeable
    assert pa.total_allocated_bytes() - before < total


def test_order_only_data_has_neither_time_nor_actions(tmp_path: Path) -> None:
    data = small(tmp_path / "set", events={"item": np.array([0, 1, 2, 2, 0], np.int32)}, actions=[])
    assert data.timestamps is None
    assert data.actions is None
    assert data.meta.time_range is None


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    first = small(tmp_path / "set")
    with pytest.raises(InputError, match="already exists"):
        small(tmp_path / "set", name="other")
    assert PreparedData.open(tmp_path / "set").meta == first.meta
    assert small(tmp_path / "set", name="other", overwrite=True).meta.name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("longview.data.dataset.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_covers_ids_order_times_and_split() -> None:
    ids, offsets = pa.array(["a", "b"]), np.array([0, 2, 3])
    items, times = np.array([0, 1, 1]), np.array([1, 2, 3])
    base = fingerprint(ids, ids, offsets, items, times, SPLIT)
    assert base == fingerprint(ids, ids, offsets, items.astype(np.int32), times, SPLIT)
    others = [
        fingerprint(pa.array(["a", "c"]), ids, offsets, items, times, SPLIT),
        fingerprint(ids, pa.array(["a", "c"]), offsets, items, times, SPLIT),
        fingerprint(ids, ids, np.array([0, 1, 3]), items, times, SPLIT),
        fingerprint(ids, ids, offsets, items[::-1], times, SPLIT),
        fingerprint(ids, ids, offsets, items, times + 1, SPLIT),
        fingerprint(ids, ids, offsets, items, None, SPLIT),
        fingerprint(ids, ids, offsets, items, times, SplitSpec(kind="global-time")),
    ]
    assert len({base, *others}) == 8


@pytest.mark.parametrize("file", ["events.arrow", "users.arrow", "items.arrow", "meta.json"])
@pytest.mark.parametrize("damage", ["absent", "truncated", "foreign"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    path = small(tmp_path / "set").path
    assert path is not None
    target = path / file
    content = target.read_bytes()
    if damage == "absent":
        target.unlink()
    else:
        target.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"something else entirely")
    with pytest.raises(InputError, match="prepare") as caught:
        PreparedData.open(path)
    assert str(path) in str(caught.value)


def test_files_of_different_data_sets_do_not_mix(tmp_path: Path) -> None:
    path = small(tmp_path / "set").path
    other = small(tmp_path / "other", users=pa.table({"id": ["a"], "length": [5]})).path
    assert path is not None
    assert other is not None
    (path / "users.arrow").write_bytes((other / "users.arrow").read_bytes())
    with pytest.raises(InputError, match=r"meta.json says"):
        PreparedData.open(path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path / "set").path
    assert path is not None
    values = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(values | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version"):
        PreparedData.open(path)


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longview prepare"):
        PreparedData.open(tmp_path)
    with pytest.raises(InputError, match="longview prepare"):
        PreparedData.open(tmp_path / "nowhere")
