"""Files of every readable format give the same rows; the others are named for what they are."""

from __future__ import annotations

import bz2
import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from longview.data import readers, textfile
from longview.data.readers import Source, expand, open_source
from longview.data.textfile import TextFile
from longview.errors import InputError
from tests.data.logs import write

TABLE = pa.table({"user": ["a", "b", "c"], "item": ["x", "y", "z"], "n": ["1", "2", "3"]})
TEXT = "user,item,n\na,x,1\nb,y,2\nc,z,3\n"


def rows(source: Source, columns: list[str] | None = None) -> list[dict[str, object]]:
    found = [batch for batch, _ in source.batches(columns or list(source.names))]
    return pa.Table.from_batches(found).to_pylist()


def ipc_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("log.csv", lambda path: write(path, TEXT)),
        ("log.txt", lambda path: write(path, TEXT.replace(",", "\t"))),
        ("log.csv", lambda path: write(path, TEXT.replace(",", ";"))),
        ("log.csv", lambda path: write(path, TEXT.replace("\n", "\r\n"))),
        ("log.csv", lambda path: write(path, "\n\n" + TEXT)),
        ("log.csv", lambda path: write(path, TEXT.encode("utf-8-sig"))),
        ("log.csv", lambda path: write(path, TEXT.encode("utf-16"))),
        ("log.csv.gz", lambda path: write(path, gzip.compress(TEXT.encode()))),
        ("gzip-without-a-name", lambda path: write(path, gzip.compress(TEXT.encode()))),
        ("log.csv.bz2", lambda path: write(path, bz2.compress(TEXT.encode()))),
        (
            "log.inter",
            lambda path: write(
                path, TEXT.replace(",", "\t").replace("\t", ":token\t", 2).replace("n\n", "n:token\n", 1)
            ),
        ),
        ("log.parquet", lambda path: pq.write_table(TABLE, path)),
        ("log.arrow", lambda path: feather.write_feather(TABLE, path, compression="uncompressed")),
        ("log.feather", lambda path: feather.write_feather(TABLE, path, compression="lz4")),
        ("log.stream", ipc_stream),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, save: object) -> None:
    save(tmp_path / name)  # type: ignore[operator]
    source = open_source(tmp_path / name)
    assert source.names == ("user", "item", "n")
    assert rows(source) == TABLE.to_pylist()
    assert rows(source, ["n", "user"]) == TABLE.select(["n", "user"]).to_pylist()
    assert source.sample().select(["user"]).to_pylist() == TABLE.select(["user"]).to_pylist()
    assert source.table(text=("n",)).cast(TABLE.schema).to_pylist() == TABLE.to_pylist()


def test_movielens_files_have_two_colons_latin_1_and_no_header(tmp_path: Path) -> None:
    source = open_source(
        write(tmp_path / "movies.dat", "1::Les Misérables: I (1995)::Drama|Musical\n".encode("latin-1"))
    )
    assert rows(source) == [{"item_id": "1", "title": "Les Misérables: I (1995)", "genres": "Drama|Musical"}]
    source = open_source(write(tmp_path / "ratings.dat", "1::1193::5::978300760\n"))
    assert source.names == ("user_id", "item_id", "rating", "timestamp")


def test_two_colons_are_found_across_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "BLOCK_BYTES", 65)
    lines = [f"{n}::{n * 7}::{n % 5}::{978300760 + n}" for n in range(200)]
    source = open_source(write(tmp_path / "ratings.dat", "\n".join(lines) + "\n"))
    assert [list(row.values()) for row in rows(source)] == [line.split("::") for line in lines]


def test_quotes_commas_newlines_and_other_alphabets_survive(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "log.csv", 'user,item\n"a,""b""\nc",Straße\n日本,"x\r\ny"\n'))
    assert rows(source) == [{"user": 'a,"b"\nc', "item": "Straße"}, {"user": "日本", "item": "x\r\ny"}]


def test_text_that_looks_like_nothing_is_text(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "log.csv", "user,item\nNA,null\nNaN,\n"))
    assert rows(source) == [{"user": "NA", "item": "null"}, {"user": "NaN", "item": None}]


def test_recbole_text_is_not_quoted(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.item", 'item_id:token\ttitle:token_seq\n1\t"Weird Al" Yankovic\n2\t"\n'))
    assert [row["title"] for row in rows(source)] == ['"Weird Al" Yankovic', '"']
    assert source.types == {"item_id": "token", "title": "token_seq"}


def test_latin_1_after_the_sample_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "SAMPLE_BYTES", 64)
    source = open_source(write(tmp_path / "log.csv", b"user,item\n" + b"a,b\n" * 100 + b"caf\xe9,x\n"))
    with pytest.raises(textfile.NotUtf8Error):
        rows(source)
    assert isinstance(source, TextFile)
    assert rows(source.as_latin1())[-1] == {"user": "café", "item": "x"}


@pytest.mark.parametrize("threads_block", [64, 1 << 24])
def test_a_ragged_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_block: int) -> None:
    monkeypatch.setattr(textfile, "BLOCK_BYTES", threads_block)
    text = "user,item,n\n" + "a,x,1\n" * 40 + "b,y\n" + "a,x,1\n" * 40
    with pytest.raises(InputError, match=r"log.csv: row 41 has 2 fields where the others have 3: 'b,y'"):
        rows(open_source(write(tmp_path / "log.csv", text)))


def test_a_quote_left_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "BLOCK_BYTES", 64)
    with pytest.raises(InputError, match=r"log.csv: .*double quote left open"):
        rows(open_source(write(tmp_path / "log.csv", 'user,item\na,x\n"b,y\n' + "a,x\n" * 40)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", b"", "the file is empty"),
        ("log.csv", b"\n\n", "the file is empty"),
        ("log.csv", b"user,item,user\n1,2,3\n", "column 'user' appears 2 times"),
        ("log.csv", b"user\n1\n", "one column only .*a log needs a user and an item"),
        ("log.csv", b"\x01\x00\x02\x00", "not a text file"),
        ("log.xlsx", b"PK\x03\x04....", "zip archive \\(or a spreadsheet\\)"),
        ("log.json", b'{"user": 1}', "JSON"),
        ("log.pkl", b"\x80\x04\x95", "pickle"),
        ("log.parquet", b"PAR1 and then nothing", "truncated or damaged"),
        ("log.arrow", b"ARROW1 and then nothing", "truncated or damaged"),
        ("log.csv.gz", gzip.compress(TEXT.encode() * 1000, mtime=0)[:60], "truncated or damaged"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        rows(open_source(write(tmp_path / name, content)))
    assert str(tmp_path / name) in str(caught.value)


def test_a_gzip_file_that_ends_too_early_is_noticed_after_its_good_part(tmp_path: Path) -> None:
    body = "".join(f"{n},{n * 7919 % 10007},{n}\n" for n in range(50_000))
    packed = gzip.compress(("user,item,n\n" + body).encode())
    for cut in (len(packed) // 2, len(packed) - 4):
        with pytest.raises(InputError, match="truncated or damaged"):
            rows(open_source(write(tmp_path / "log.csv.gz", packed[:cut])))


def test_parquet_comes_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 100)
    pq.write_table(pa.table({"user": range(1000), "item": range(1000)}), tmp_path / "log.parquet")
    source = open_source(tmp_path / "log.parquet")
    sizes = [(batch.num_rows, done) for batch, done in source.batches(["user"])]
    assert [size for size, _ in sizes] == [100] * 10
    assert sizes[-1][1] == source.size


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: .*save it first"):
        open_source(tmp_path / "pipe")


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden", "_SUCCESS"):
        write(tmp_path / name, TEXT)
    assert [path.name for path in expand([tmp_path])] == ["a.csv", "b.csv"]
    assert [path.name for path in expand([tmp_path / "b.csv", str(tmp_path / "*.csv")])] == ["b.csv", "a.csv"]
    for name in ("README", "x.item", "x.user", "x.inter"):
        write(tmp_path / name, TEXT)
    assert [path.name for path in expand([tmp_path])] == ["x.inter"]  # RecBole says what the log is


def test_a_folder_of_several_kinds_asks_for_the_log(tmp_path: Path) -> None:
    for name in ("movies.dat", "sequences.csv.gz", "users.dat", "README"):
        write(tmp_path / name, TEXT)
    with pytest.raises(
        InputError, match=r"several kinds of files \(movies.dat, sequences.csv.gz, users.dat\).*--items"
    ):
        expand([tmp_path])
    write(tmp_path / "ratings.dat", TEXT)
    assert [path.name for path in expand([tmp_path])] == ["ratings.dat"]


def test_a_file_that_is_not_there_is_named_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "events.csv", TEXT)
    with pytest.raises(InputError, match=r"event.csv: no such file; beside it: events.csv"):
        expand([tmp_path / "event.csv"])
    with pytest.raises(InputError, match="there is no folder"):
        expand([tmp_path / "nowhere" / "event.csv"])
    with pytest.raises(InputError, match="no such file"):
        expand([tmp_path / "*.parquet"])
    with pytest.raises(InputError, match="no input"):
        expand([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files of data"):
        expand([tmp_path / "empty"])
