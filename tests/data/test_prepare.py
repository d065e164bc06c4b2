"""`prepare`: from a log to a data set. What comes out, and for bad input what is said; nothing half-written."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longview.data import order, readers, spool, textfile
from longview.data.prepare import prepare
from longview.errors import InputError
from tests.data.logs import LOG, T0, histories, write, write_rows

EXPECTED = {"u1": ["a", "b", "c"], "u2": ["a", "c", "b"], "u3": ["b", "a"]}


def assert_refused(tmp_path: Path, log: Path | list[Path], words: str, **options: Any) -> None:
    """Check that the message has `words` and that nothing was written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        prepare(log, out=tmp_path / "data", **options)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before


def test_a_log_becomes_sequences_in_order_of_time(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "log.csv", LOG), out=tmp_path / "data", split="leave-last-out")
    assert histories(data) == EXPECTED
    assert data.timestamps is not None
    assert data.timestamps.tolist()[:3] == [T0, T0 + 10, T0 + 20]
    assert data.meta.name == "data"
    assert data.meta.columns == {"user": "user_id", "item": "item_id", "time": "timestamp"}
    assert data.item_table.column_names == ["id", "title"]
    assert (tmp_path / "data" / "card.md").read_text().startswith("# Data card: data")


def test_a_python_user_gives_one_path_or_many(tmp_path: Path) -> None:
    lines = LOG.splitlines(keepends=True)
    parts = [write(tmp_path / f"part{n}.csv", lines[0] + "".join(lines[1 + n :: 2])) for n in range(2)]
    whole = prepare(str(write(tmp_path / "log.csv", LOG)), out=tmp_path / "one")
    several = prepare(parts, out=tmp_path / "two")
    pattern = prepare([tmp_path / "part*.csv"], out=tmp_path / "three")
    assert whole.fingerprint == several.fingerprint == pattern.fingerprint


def test_the_batches_of_a_large_log_are_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{n * 7 % 31}", f"i{n * n % 37}", T0 + n * 13 % 101) for n in range(2000)]
    log = write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows)
    table = pa.table({"user": [r[0] for r in rows], "item": [r[1] for r in rows], "time": [r[2] for r in rows]})
    pq.write_table(table, tmp_path / "log.parquet")
    whole = prepare(log, out=tmp_path / "whole")
    for module, name, value in (
        (textfile, "BLOCK_BYTES", 256),
        (readers, "BATCH_ROWS", 50),
        (spool, "CHUNK_ROWS", 64),
        (order, "PARTITION_ROWS", 100),
    ):
        monkeypatch.setattr(module, name, value)
    for source in (log, tmp_path / "log.parquet"):
        pieces = prepare(source, out=tmp_path / f"pieces-{source.suffix}")
        assert pieces.fingerprint == whole.fingerprint
        assert pieces.meta.card | {"inputs": None} == whole.meta.card | {"inputs": None}


def test_unsorted_input_is_sorted_and_counted(tmp_path: Path) -> None:
    header, *rows = LOG.splitlines()
    log = write(tmp_path / "log.csv", "\n".join([header, *reversed(rows)]))
    data = prepare(log, out=tmp_path / "data")
    assert histories(data) == EXPECTED
    assert data.meta.card["out_of_order"] == 5


def test_ties_keep_their_order_of_appearance(tmp_path: Path) -> None:
    rows = [("u", item, T0) for item in ("z", "m", "a")] + [("v", "a", T0), ("v", "z", T0 - 1)]
    data = prepare(write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows), out=tmp_path / "data")
    assert histories(data) == {"u": ["z", "m", "a"], "v": ["z", "a"]}
    assert data.meta.card["tied_share"] == pytest.approx(2 / 3)


def test_times_are_sorted_at_full_precision_and_stored_in_seconds(tmp_path: Path) -> None:
    rows = [("u", "b", T0 * 1000 + 2), ("u", "a", T0 * 1000 + 1), ("u", "c", T0 * 1000 + 1999)]
    data = prepare(write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows), out=tmp_path / "data")
    assert histories(data) == {"u": ["a", "b", "c"]}
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [T0, T0, T0 + 1]
    assert data.meta.card["tied_share"] == 0


def test_order_only_data(tmp_path: Path) -> None:
    rows = [("u", "b", 2), ("u", "a", 10), ("v", "a", 1.5), ("v", "b", 1.25)]
    log = write_rows(tmp_path / "log.csv", ["user", "item", "place"], rows)
    data = prepare(log, out=tmp_path / "data", order="place")
    assert histories(data) == {"u": ["b", "a"], "v": ["b", "a"]}
    assert (data.meta.has_time, data.timestamps, data.meta.split.kind) == (False, None, "leave-last-out")


def test_a_log_with_neither_time_nor_order_is_taken_as_it_comes_and_says_so(tmp_path: Path) -> None:
    data = prepare(write(tmp_path / "pairs.txt", "1 10\n1 30\n2 20\n1 10\n"), out=tmp_path / "data")
    assert histories(data) == {"1": ["10", "30", "10"], "2": ["20"]}
    assert "order of the rows" in data.meta.card["notes"][0]


def test_ids_of_any_kind_survive(tmp_path: Path) -> None:
    ids = ['a,"b"', "new\nline", "Zoë", "日本", "NA", "null", " x ", "007"]
    rows = [(user, item, T0 + n) for user in ids for n, item in enumerate(ids)]
    data = prepare(write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows), out=tmp_path / "data")
    assert histories(data) == dict.fromkeys(sorted(ids), ids)


def test_numbers_are_numbered_as_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {"user": [10.0, 10.0, 9.0], "item": [100, 20, 3], "time": [datetime(2020, 1, day) for day in (1, 2, 3)]}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    data = prepare(tmp_path / "log.parquet", out=tmp_path / "data")
    assert histories(data) == {"9": ["3"], "10": ["100", "20"]}
    assert data.item_ids.ids.to_pylist() == ["3", "20", "100"]


def test_duplicate_events_are_merged_and_counted(tmp_path: Path) -> None:
    rows = [("a", T0, "view", ""), ("b", T0, "view", 2), ("a", T0, "buy", 5), ("a", T0 + 1, "view", 1)]
    log = write_rows(tmp_path / "log.csv", ["user", "item", "time", "event", "rating"], [("u", *row) for row in rows])
    data = prepare(log, out=tmp_path / "data")
    assert histories(data) == {"u": ["a", "b", "a"]}
    assert data.meta.actions == ("buy", "view")
    assert data.actions is not None
    assert data.actions.tolist() == [3, 2, 2]
    assert data.strength("rating").tolist() == [5, 2, 1]
    assert (data.meta.card["merged_duplicates"], data.meta.card["repeat_share"]) == (1, pytest.approx(1 / 3))
    kept = prepare(log, out=tmp_path / "kept", keep_duplicates=True)
    assert histories(kept) == {"u": ["a", "b", "a", "a"]}
    assert kept.meta.card["merged_duplicates"] == 0


def test_actions_of_several_columns(tmp_path: Path) -> None:
    text = "user,item,time,like,buy\nu,a,1600000000,1,0\nu,b,1600000001,0,0\nu,c,1600000002,1,1\n"
    data = prepare(write(tmp_path / "log.csv", text), out=tmp_path / "data", actions=["like", "buy"])
    assert data.meta.actions == ("like", "buy")
    assert data.actions is not None
    assert data.actions.tolist() == [1, 0, 3]
    assert data.meta.card["actions"] == {"like": 2, "buy": 1}


def test_filters_and_what_they_removed(tmp_path: Path) -> None:
    rows = [(user, item, T0 + n) for user in "abc" for n, item in enumerate("xyz")] + [("d", "x", T0), ("a", "w", T0)]
    log = write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows)
    data = prepare(log, out=tmp_path / "data", min_user_events=2, min_item_events=2)
    assert histories(data) == {user: ["x", "y", "z"] for user in "abc"}
    assert data.item_ids.ids.to_pylist() == ["x", "y", "z"]
    removed = {entry["filter"]: entry["events"] for entry in data.meta.card["filters"]}
    assert removed == {"min_user_events=2": 1, "min_item_events=2": 1}


def test_features_of_what_is_left(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "item_id,title,genre\nb,Bee,x|y\na,Ay,x\nnever,Seen,x\n")
    users = write(tmp_path / "users.csv", "user_id,age\nu2,30\n")
    data = prepare(write(tmp_path / "log.csv", LOG), out=tmp_path / "data", items=items, users=users)
    assert data.item_table.to_pydict() == {
        "id": ["a", "b", "c"],
        "title": ["Ay", "Bee", None],
        "category": [["x"], ["x", "y"], None],
    }
    assert data.users["age"].to_pylist() == [None, 30, None]
    assert data.users.column_names[:3] == ["id", "offset", "length"]
    card = data.meta.card["item_features"]
    assert (card["missing"], card["unused"]) == (1, 1)


def test_latin_1_beyond_the_sample_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "SAMPLE_BYTES", 64)
    rows = b"".join(b"u%d,i%d,%d\n" % (n % 5, n % 3, T0 + n) for n in range(50))
    log = write(tmp_path / "log.csv", b"user,item,time\n" + rows + b"caf\xe9,i0,1600000000\n")
    data = prepare(log, out=tmp_path / "data")
    assert "café" in data.user_ids.ids.to_pylist()
    assert data.meta.card["rows_read"] == 51
    assert "Latin-1" in data.meta.card["notes"][0]


def test_users_with_one_event_are_kept_and_counted(tmp_path: Path) -> None:
    data = prepare(
        write(tmp_path / "log.csv", LOG + "u9,c,1600000000\n"), out=tmp_path / "data", split="leave-last-out"
    )
    assert histories(data)["u9"] == ["c"]
    assert data.meta.card["one_event_users"] == 1
    assert data.meta.card["split"]["test_users"] == 3


def test_polars_is_loaded_by_prepare_alone() -> None:
    code = "import longview.data, longview.data.prepare, sys; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cold_targets_and_repeats_are_counted(tmp_path: Path) -> None:
    rows = [("u", item, T0 + n) for n, item in enumerate(["a", "b", "c", "new"])]
    rows += [("v", item, T0 + n) for n, item in enumerate(["a", "b", "c", "a"])]
    log = write_rows(tmp_path / "log.csv", ["user", "item", "time"], rows)
    card = prepare(log, out=tmp_path / "data", split="leave-last-out").meta.card
    assert (card["repeat_share"], card["density"]) == (1 / 8, 7 / 8)  # 7 different pairs of 2 users and 4 items
    split = card["split"]
    assert (split["train_events"], split["test_users"]) == (4, 2)
    assert split["cold_test_share"] == 0.5  # `new`
    assert split["cold_validation_share"] == 1.0  # `c` is in no training event
    assert split["repeated_test_share"] == 0.5  # `a` again


def test_rows_that_lack_something_are_left_out_on_request(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", LOG + ",a,1600000000\nu1,,1600000000\nu1,a,\n")
    data = prepare(log, out=tmp_path / "data", drop_incomplete=True)
    assert histories(data) == EXPECTED
    assert data.meta.card["incomplete_rows"] == 3


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "log.csv: the file is empty"),
        ("user_id,item_id,timestamp\n", {}, "log.csv: there is a header but no rows"),
        ("user_id,user_id,timestamp\n1,2,3\n", {}, "log.csv: column 'user_id' appears 2 times"),
        (LOG, {"item": "itm_id"}, r"log.csv: no column 'itm_id' \(did you mean 'item_id'\?\)"),
        (LOG, {"tme": "timestamp"}, r"unknown key 'tme' \(did you mean 'time'\?\)"),
        (LOG, {"quantile": 1.5}, "quantile"),
        (LOG + ",a,1600000000\n", {}, "log.csv: row 9: column 'user_id' is empty.*--drop-incomplete"),
        (LOG + 'u1,"",1600000000\n', {}, "log.csv: row 9: column 'item_id' is empty"),
        (LOG + "u1,a,\n", {}, "log.csv: row 9: column 'timestamp' is empty"),
        (LOG + "u1,a,nan\n", {}, "log.csv: row 9: column 'timestamp' holds nan"),
        (LOG + "u1,a,-5\n", {}, r"log.csv: row 9: .* before 1970 \(-5"),
        (LOG + "u1,a,4000000000\n", {}, "log.csv: row 9: .* in the future"),
        (LOG + "u1,a,1600000000000\n", {}, "log.csv: row 9: .* mixes units"),
        (LOG + "u1,a\n", {}, "log.csv: row 9 has 2 fields where the others have 3"),
        (LOG, {"min_user_events": 9}, "min_user_events=9 removed the last ones.*--min-user-events"),
        ("u,i,t\na,x,1600000000\nb,y,1600000000\n", {}, "no user has two events.*--user"),
        ("u,i,t\na,x,1600000000\na,x,1600000001\n", {}, "one item 'x'.*--item"),
        ("u,i,n\na,x,1\na,y,2\n", {"order": "n", "split": "global-time"}, "global-time needs a time column"),
        (
            LOG,
            {"strengths": ["user_id"], "user": "item_id", "item": "timestamp"},
            "row 1: .*'u1', which is not a number",
        ),
        (
            "u,i,t,rating\na,x,1600000000,5\na,y,1600000001,inf\nb,x,1600000000,-1e39\n",
            {},
            "log.csv: row 2: column 'rating' holds 'inf', which is infinite or too large",
        ),
        (
            "u,i,t,rating\na,x,1600000000,5\na,y,1600000001,1\nb,x,1600000000,-1e39\n",
            {},
            "log.csv: row 3: column 'rating' holds '-1e39'",
        ),
    ],
)
def test_bad_logs(tmp_path: Path, text: str, options: dict[str, Any], words: str) -> None:
    assert_refused(tmp_path, write(tmp_path / "log.csv", text), words, **options)


def test_filters_that_leave_one_item(tmp_path: Path) -> None:
    text = "u,i,t\na,x,1600000000\na,y,1600000001\nb,x,1600000000\n"
    assert_refused(tmp_path, write(tmp_path / "log.csv", text), "one item 'x'.*filters", min_item_events=2)


def test_a_second_file_without_the_columns_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", LOG)
    second = write(tmp_path / "b.csv", LOG.replace("item_id", "item"))
    assert_refused(
        tmp_path, [first, second], r"b.csv: no column 'item_id', which .*a.csv has \(did you mean 'item'\?\)"
    )


def test_a_row_of_a_later_file_is_counted_in_that_file(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", LOG), write(tmp_path / "b.csv", LOG + "u9,a,-5\n")
    assert_refused(tmp_path, [first, second], "b.csv: row 9:")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("item_id,title\nq,Q\n", "none of its 1 ids .*is in the log"),
        ("item_id,item_id\nq,Q\n", "appears 2 times"),
        ("", "items.csv: the file is empty"),
    ],
)
def test_bad_item_files(tmp_path: Path, content: str, words: str) -> None:
    items = write(tmp_path / "items.csv", content)
    assert_refused(tmp_path, write(tmp_path / "log.csv", LOG), words, items=items)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path, tmp_path / "absent.csv", "absent.csv: no such file")
    assert_refused(tmp_path, write(tmp_path / "log.csv", LOG), "items.csv: no such file", items=tmp_path / "items.csv")


def test_a_truncated_gzip_file_leaves_nothing(tmp_path: Path) -> None:
    body = "".join(f"u{n % 97},i{n * 7919 % 10007},{T0 + n}\n" for n in range(50_000))
    packed = gzip.compress(("user,item,time\n" + body).encode())
    assert_refused(tmp_path, write(tmp_path / "log.csv.gz", packed[: len(packed) // 2]), "log.csv.gz: .*truncated")


def test_nested_ids_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [[1], [2]], "item": ["a", "b"], "time": [T0, T0]}), tmp_path / "log.parquet")
    assert_refused(tmp_path, tmp_path / "log.parquet", "column 'user' is of type List.*no id")


def test_ids_of_bytes_are_text_or_refused(tmp_path: Path) -> None:
    def bytes_log(*users: bytes) -> Path:
        table = pa.table({"user": users, "item": [b"a", b"b"], "time": [T0, T0]})
        pq.write_table(table, tmp_path / "log.parquet")
        return tmp_path / "log.parquet"

    assert_refused(tmp_path, bytes_log(b"u", b"\xff"), "log.parquet: column 'user' holds bytes that are not UTF-8 text")
    assert prepare(bytes_log(b"u", b"u"), out=tmp_path / "data").user_ids.ids.to_pylist() == ["u"]


@pytest.mark.parametrize("build", [lambda p: p, lambda p: p / "inner"])
def test_an_output_that_holds_the_input_is_refused(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    folder = tmp_path / "data"
    build(folder).mkdir(parents=True)
    log = write(build(folder) / "log.csv", LOG)
    with pytest.raises(InputError, match="holds the input"):
        prepare(log, out=folder, overwrite=True)
    assert log.read_text() == LOG
