"""Logs and tables in whatever file they come: text, Parquet or Arrow, one interface, streamed."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from longview.data.textfile import TextFile, check_names
from longview.errors import InputError

BATCH_ROWS = 1 << 19
READABLE = "CSV, TSV, RecBole .inter/.item/.user, MovieLens .dat, Parquet, Arrow/Feather; text also as .gz, .bz2, .zst"
DATA_FILE = re.compile(
    r"^[^._].*\.(csv|tsv|txt|dat|data|inter|parquet|pq|arrow|feather|ipc)(\.(gz|bz2|zst))?$|^part-", re.IGNORECASE
)
LOG_FILE = re.compile(r"\.inter$|^ratings\.|^u\.data$|^(events|interactions)\.")
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it, or save the sheet as CSV",
    b"FEA1": "Feather version 1: write it again as version 2",
    b"\x80\x04": "a Python pickle, which is never read: write Parquet instead",
    b"\x80\x05": "a Python pickle, which is never read: write Parquet instead",
    b"{": "JSON: write it as Parquet or CSV",
    b"[": "JSON: write it as Parquet or CSV",
    b"%PDF": "a PDF",
    b"\x89HDF": "HDF5: write it as Parquet",
    b"SQLite format 3": "a SQLite database: export the table as CSV",
}


class Source(Protocol):
    """One input file. `types` are RecBole's, empty for other files."""

    @property
    def path(self) -> Path: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def types(self) -> dict[str, str]: ...
    @property
    def size(self) -> int:
        """Bytes on disk."""

    def sample(self, rows: int = 1000) -> pa.Table:
        """Return the first rows."""

    def batches(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield (rows of `columns`, bytes read so far)."""

    def table(self, text: tuple[str, ...] = ()) -> pa.Table:
        """Read the whole file; the columns `text` as text where the format has no types of its own."""


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file."""

    path: Path
    names: tuple[str, ...]
    types: dict[str, str]

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def sample(self, rows: int = 1000) -> pa.Table:
        with self._open() as file:
            batch = next(file.iter_batches(batch_size=rows), None)
            return file.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])

    def batches(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        with self._open() as file:
            total, done = max(1, file.metadata.num_rows), 0
            try:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    done += batch.num_rows
                    yield batch, self.size * done // total
            except (OSError, pa.ArrowInvalid) as error:
                raise _damaged(self.path, error) from None

    def table(self, text: tuple[str, ...] = ()) -> pa.Table:
        with self._open() as file:
            return file.read()

    def _open(self) -> pq.ParquetFile:
        # A small buffer instead of whole row groups: memory stays bounded however the file was written.
        return pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)


@dataclass(frozen=True)
class ArrowSource:
    """An Arrow IPC file (Feather version 2) or stream."""

    path: Path
    names: tuple[str, ...]
    types: dict[str, str]

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def sample(self, rows: int = 1000) -> pa.Table:
        for batch, _ in self.batches(list(self.names)):
            return pa.Table.from_batches([batch.slice(0, rows)])
        return self._schema().empty_table()

    def batches(self, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        with pa.memory_map(str(self.path)) as raw:
            try:
                for batch in self._batches(raw):
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.select(columns).slice(start, BATCH_ROWS), min(raw.tell(), self.size)
            except (OSError, pa.ArrowInvalid) as error:
                raise _damaged(self.path, error) from None

    def table(self, text: tuple[str, ...] = ()) -> pa.Table:
        with pa.memory_map(str(self.path)) as raw:
            return pa.Table.from_batches(list(self._batches(raw)), self._schema())

    def _schema(self) -> pa.Schema:
        with pa.memory_map(str(self.path)) as raw:
            return (pa.ipc.open_file(raw) if _is_ipc_file(self.path) else pa.ipc.open_stream(raw)).schema

    def _batches(self, raw: pa.NativeFile) -> Iterator[pa.RecordBatch]:
        if not _is_ipc_file(self.path):
            yield from pa.ipc.open_stream(raw)
            return
        reader = pa.ipc.open_file(raw)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def open_source(path: Path) -> Source:
    """Recognise the file at `path` by its first bytes.

    Raises:
        InputError: no such file, an empty one, a format that cannot be read, or a column name used twice.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file that can be read twice (a pipe?); save it first, then read the file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None
    if not head:
        raise InputError(f"{path}: the file is empty")
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{path}: this is {what}. Readable: {READABLE}")
    try:
        if head.startswith(b"PAR1"):
            names = tuple(pq.ParquetFile(path).schema_arrow.names)
            check_names(path, names)
            return ParquetSource(path, names, {})
        if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            names = tuple(ArrowSource(path, (), {})._schema().names)
            check_names(path, names)
            return ArrowSource(path, names, {})
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None
    return TextFile.sniff(path, head)


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the files that `inputs` name: files, folders (every log inside) and glob patterns, in that order.

    Within a folder or pattern the order is that of the names. A file named twice is read once.

    Raises:
        InputError: nothing there, or nothing to read in a folder.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            logs = _logs_in(path)
        elif path.exists():
            logs = [path]
        else:
            logs = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]  # noqa: PTH207
            if not logs:
                raise InputError(f"{path}: no such file" + _neighbours(path))
        found.update(dict.fromkeys(logs))
    if not found:
        raise InputError("no input: name at least one log file")
    return list(found)


def _logs_in(folder: Path) -> list[Path]:
    """Return the files of one log in `folder`: all that end alike, or the one whose name says that it is the log."""
    inside = sorted(p for p in folder.iterdir() if p.is_file() and DATA_FILE.search(p.name))
    logs = [p for p in inside if LOG_FILE.search(p.name)] or inside
    if not logs:
        raise InputError(f"{folder}: the folder holds no files of data. Readable: {READABLE}")
    if len({"".join(p.suffixes) for p in logs}) > 1:
        raise InputError(
            f"{folder}: the folder holds several kinds of files ({', '.join(p.name for p in logs[:6])}): name the log "
            "itself, and the others with --items and --users"
        )
    return logs


def _neighbours(path: Path) -> str:
    """Say what lies where the missing file was looked for."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent} either)"
    names = sorted(p.name for p in path.parent.iterdir() if p.is_file() and not p.name.startswith("."))[:5]
    return f"; beside it: {', '.join(names)}" if names else ""


def _is_ipc_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


def _damaged(path: Path, error: Any) -> InputError:
    return InputError(f"{path}: cannot be read ({str(error)[:200]}); the file is truncated or damaged: copy it again")
