"""Delimited text logs: the dialect of a file, and its rows as a stream of bounded memory."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv

from longview.errors import InputError

SAMPLE_BYTES = 1 << 18
BLOCK_BYTES = 1 << 24
ROW_BYTES = 1 << 30  # the longest row we can be asked to hold
UNIT_SEPARATOR = b"\x1f"  # stands for `::`, since a CSV parser takes one character only
DELIMITERS = ("::", "\t", ",", ";", "|", " ")
RECBOLE = re.compile(r"(.+):(token|token_seq|float|float_seq)")
VALUE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|\d{4}[-/]\d\d[-/]\d\d.*")  # a number or a date
COMPRESSION = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"(\xb5/\xfd": "zstd"}

# Files that everybody has and that carry no header.
HEADERLESS = {
    "ratings.dat": ("user_id", "item_id", "rating", "timestamp"),
    "movies.dat": ("item_id", "title", "genres"),
    "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
    "u.data": ("user_id", "item_id", "rating", "timestamp"),
    "u.user": ("user_id", "age", "gender", "occupation", "zip_code"),
}


class NotUtf8Error(Exception):
    """A text file turned out not to be UTF-8 after its first block; read it again as Latin-1."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


@dataclass(frozen=True)
class TextFile:
    """A delimited text file and its dialect.

    `names` are the column names without RecBole types; `types` holds those types (`token`, `float`, `token_seq`,
    `float_seq`) by name, and is empty for other files. Where the first row is no `header` (it holds a number or a
    date), names are known ones (MovieLens) or `column_1`, `column_2`, ... `skip` lines come before the first row.
    """

    path: Path
    delimiter: str
    encoding: str
    compression: str | None
    names: tuple[str, ...]
    types: dict[str, str]
    quoted: bool
    header: bool
    skip: int

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> TextFile:
        """Work out the dialect of `path`, whose first bytes are `head`.

        Raises:
            InputError: an empty or binary file, one with a single column, or with a column name used twice.
        """
        compression = next((name for magic, name in COMPRESSION.items() if head.startswith(magic)), None)
        raw = _first_bytes(path, compression)
        text, encoding = _decode(path, raw)
        lines = list(io.StringIO(text, newline=""))
        at = next((n for n, line in enumerate(lines) if line.strip()), None)
        if at is None:
            raise InputError(f"{path}: the file is empty")
        first = lines[at].rstrip("\r\n")
        delimiter = _delimiter(path, first)
        plain = _plain_name(path)
        fields = first.split(delimiter) if len(delimiter) > 1 else next(csv.reader([first], delimiter=delimiter))
        typed = [RECBOLE.fullmatch(field) for field in fields]
        header = not any(VALUE.fullmatch(field.strip()) for field in fields)
        numbered = tuple(f"column_{n + 1}" for n in range(len(fields)))
        if header:
            stripped = [(match[1] if match else field).strip() for match, field in zip(typed, fields, strict=True)]
            names = tuple(name or number for name, number in zip(stripped, numbered, strict=True))
        else:
            known = HEADERLESS.get(plain, ())
            names = known if len(known) == len(fields) else numbered
        check_names(path, names)
        recbole = all(typed)
        types = {match[1]: match[2] for match in typed if match} if recbole else {}
        quoted = not recbole and delimiter != "::"
        return cls(path, delimiter, encoding, compression, names, types, quoted, header, at + header)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def as_latin1(self) -> TextFile:
        """Return the same file, to be read as Latin-1."""
        return replace(self, encoding="latin-1")

    def sample(self, rows: int = 1000) -> pa.Table:
        """Return the first rows as text."""
        raw = _first_bytes(self.path, self.compression)
        whole = len(raw) < SAMPLE_BYTES
        lines = list(io.StringIO(_decode(self.path, raw)[0], newline=""))[self.skip :]
        kept = lines if whole else lines[:-1]
        if len(self.delimiter) > 1:
            parsed: Iterator[list[str]] = (line.rstrip("\r\n").split(self.delimiter) for line in kept)
        else:
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
            parsed = csv.reader(kept, delimiter=self.delimiter, quoting=quoting)
        records = [row for row in islice(parsed, rows) if len(row) == len(self.names)]
        columns = {
            name: pa.array([row[n] or None for row in records], pa.string()) for n, name in enumerate(self.names)
        }
        return pa.table(columns)

    def batches(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield (rows of `columns` as text, bytes of the file read so far). An empty field is null.

        Raises:
            InputError: a row with more or fewer fields than the header, or a damaged compressed file.
            NotUtf8Error: see there.
        """
        raw = pa.OSFile(str(self.path), "rb")
        try:
            for batch in self._open(raw, columns, threads=True):
                yield batch, raw.tell()
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise NotUtf8Error(self.path) from None
            raise self._explain(error, columns) from None
        except OSError as error:
            raise _damaged(self.path, error) from None

    def table(self, text: tuple[str, ...] = ()) -> pa.Table:
        """Read the whole file with inferred types; the columns `text`, and RecBole tokens, stay text."""
        tokens = [name for name, kind in self.types.items() if kind != "float"]
        convert = pa_csv.ConvertOptions(
            column_types=dict.fromkeys((*text, *tokens), pa.string()),
            **_NULLS,
        )
        try:
            stream = self._stream(pa.OSFile(str(self.path), "rb"))
            parse = self._parse_options(None)
            return pa_csv.read_csv(stream, self._read_options(True), parse, convert)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error) and self.encoding != "latin-1":
                return self.as_latin1().table(text)
            raise self._explain(error, list(self.names)) from None
        except OSError as error:
            raise _damaged(self.path, error) from None

    def _open(self, raw: pa.NativeFile, columns: list[str], *, threads: bool, handler: Any = None) -> Any:
        convert = pa_csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), **_NULLS
        )
        return pa_csv.open_csv(self._stream(raw), self._read_options(threads), self._parse_options(handler), convert)

    def _stream(self, raw: pa.NativeFile) -> pa.NativeFile:
        stream = raw if self.compression is None else pa.CompressedInputStream(raw, self.compression)
        return pa.PythonFile(_OneCharacter(stream), mode="r") if self.delimiter == "::" else stream

    def _read_options(self, threads: bool) -> pa_csv.ReadOptions:
        return pa_csv.ReadOptions(
            column_names=list(self.names),
            skip_rows=self.skip,
            encoding=self.encoding,
            block_size=BLOCK_BYTES,
            use_threads=threads,
        )

    def _parse_options(self, handler: Any) -> pa_csv.ParseOptions:
        return pa_csv.ParseOptions(
            delimiter=UNIT_SEPARATOR.decode() if self.delimiter == "::" else self.delimiter,
            quote_char='"' if self.quoted else False,
            newlines_in_values=self.quoted,
            invalid_row_handler=handler,
        )

    def _explain(self, error: Exception, columns: list[str]) -> InputError:
        """Read again on one thread, which alone can tell the number of the bad row."""
        found: list[Any] = []

        def note(row: Any) -> str:
            found.append(row)
            return "error"

        try:
            with pa.OSFile(str(self.path), "rb") as raw:
                for _ in self._open(raw, columns, threads=False, handler=note):
                    pass
        except (pa.ArrowInvalid, OSError):
            pass
        if "straddl" in str(error):
            return InputError(
                f"{self.path}: a value is longer than {BLOCK_BYTES >> 20} MiB: probably a double quote left open, so "
                "that all that follows is read as one value"
            )
        if not found:
            return InputError(f"{self.path}: cannot be read as delimited text: {error}")
        row = found[0]
        number = f"row {row.number - self.header}" if row.number else "a row"
        return InputError(
            f"{self.path}: {number} has {row.actual_columns} fields where the others have {row.expected_columns}: "
            f"{row.text[:80]!r}; correct or remove it (a {self.delimiter!r} inside a value needs double quotes)"
        )


_NULLS: dict[str, Any] = {"null_values": [""], "strings_can_be_null": True, "quoted_strings_can_be_null": True}


def check_names(path: Path, names: tuple[str, ...]) -> None:
    """Refuse a column name used twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{path}: column {twice[0]!r} appears {names.count(twice[0])} times in the header; rename one of them"
        )


class _OneCharacter(io.RawIOBase):
    """`::` replaced by one separator character, as the file is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._held = stream, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._held + self._stream.read(size)
        self._held = b""
        while chunk.endswith(b":"):  # the other half may come next
            more = self._stream.read(1)
            chunk += more
            if not more:
                break
        return chunk.replace(b"::", UNIT_SEPARATOR)


def _first_bytes(path: Path, compression: str | None) -> bytes:
    try:
        with pa.OSFile(str(path), "rb") as raw:
            stream = raw if compression is None else pa.CompressedInputStream(raw, compression)
            content: bytes = stream.read(SAMPLE_BYTES)
            return content
    except OSError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read to its end ({error}); the file is truncated or damaged: copy it again")


def _decode(path: Path, raw: bytes) -> tuple[str, str]:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")().decode(raw), "utf-16"
    if b"\0" in raw:
        raise InputError(f"{path}: not a text file; readable are CSV, TSV, Parquet, Arrow and gzip of the text ones")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw), "utf8"
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "latin-1"


def _delimiter(path: Path, line: str) -> str:
    plain = re.sub(r'"[^"]*"', "", line)
    counts = {delimiter: plain.count(delimiter) for delimiter in DELIMITERS}
    if counts["::"]:
        return "::"
    for group in (("\t",), (",", ";", "|"), (" ",)):
        best = max(group, key=lambda delimiter: counts[delimiter])
        if counts[best]:
            return best
    raise InputError(
        f"{path}: one column only ({line[:60]!r}); a log needs a user and an item, a table of images a path and a "
        "label, separated by a comma, tab, semicolon, bar, space or `::`"
    )


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").removesuffix(".bz2").removesuffix(".zst")
