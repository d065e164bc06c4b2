"""Columns of rows on disk, as raw files: what `prepare` holds instead of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
CHUNK_ROWS = 1 << 21


class Spool:
    """Equally long columns, one raw file each in `folder`; a context manager that closes the files.

    Example:
        >>> with Spool(folder, {"user": np.int32, "key": np.int64}) as spool:  # doctest: +SKIP
        ...     spool.append({"user": users, "key": keys})
    """

    def __init__(self, folder: Path, types: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.folder = folder
        self.types = {name: np.dtype(kind) for name, kind in types.items()}
        self.rows = 0
        self._stack = ExitStack()
        self._files = {name: self._stack.enter_context(self.path(name).open("w+b")) for name in types}

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def path(self, name: str) -> Path:
        """The file of column `name`."""
        return self.folder / f"{name}.bin"

    def append(self, columns: Mapping[str, Column]) -> None:
        """Add rows at the end."""
        self.write(self.rows, columns)

    def write(self, start: int, columns: Mapping[str, Column]) -> None:
        """Write rows from row `start` on."""
        count = 0
        for name, kind in self.types.items():
            values = np.ascontiguousarray(columns[name], kind)
            count = len(values)
            self._files[name].seek(start * kind.itemsize)
            self._files[name].write(values.data)
        self.rows = max(self.rows, start + count)

    def read(self, start: int, stop: int, *names: str) -> dict[str, Column]:
        """Return rows [start, stop) of the columns `names` (all without names)."""
        found: dict[str, Column] = {}
        for name in names or self.types:
            values = np.empty(stop - start, self.types[name])
            self._files[name].seek(start * values.itemsize)
            self._files[name].readinto(values.data)
            found[name] = values
        return found

    def chunks(self, *names: str) -> Iterator[tuple[int, dict[str, Column]]]:
        """Yield (first row, rows) of at most `CHUNK_ROWS` rows."""
        for start in range(0, self.rows, CHUNK_ROWS):
            yield start, self.read(start, min(self.rows, start + CHUNK_ROWS), *names)

    def flush(self) -> None:
        """Make what was written visible to readers of the files."""
        for file in self._files.values():
            file.flush()

    def remove(self) -> None:
        """Close and delete the files, to free their space early."""
        self._stack.close()
        for name in self.types:
            self.path(name).unlink()
        self.folder.rmdir()
