"""Spooled columns as arrays and as one Arrow file, mapped: their pages are given back as soon as they are used."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.spool import Spool

PIECE_BYTES = 1 << 24


class MappedColumns:
    """Read-only views of the columns of `spool`, which holds at least one row.

    Pages that were touched count as memory of the process until `release`.
    """

    def __init__(self, spool: Spool) -> None:
        spool.flush()
        self.types = spool.types
        self._maps = {name: _map(spool.path(name)) for name in spool.types}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return np.frombuffer(self._maps[name], self.types[name])

    def release(self) -> None:
        """Give the pages back; the next access maps them again."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def write_arrow(self, path: Path) -> None:
        """Write the columns as an Arrow IPC file of a single record batch, in memory of a few MiB."""
        arrays = [
            pa.Array.from_buffers(pa.from_numpy_dtype(kind), len(self[name]), [None, pa.py_buffer(self._maps[name])])
            for name, kind in self.types.items()
        ]
        table = pa.table(arrays, names=list(self.types))
        with (
            path.open("wb", buffering=0) as file,
            pa.PythonFile(_Pieces(file, self), mode="w") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=table.num_rows)


class _Pieces(io.RawIOBase):
    """A file that is written piece by piece, giving mapped pages back after each."""

    def __init__(self, file: io.FileIO, columns: MappedColumns) -> None:
        self._file, self._columns = file, columns

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += self._file.write(view[written : written + PIECE_BYTES])
            self._columns.release()
        return written


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
