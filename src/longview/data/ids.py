"""External ids: text to dense codes while a log streams by, then numbered in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.errors import InputError

if TYPE_CHECKING:
    import polars as pl

Codes = npt.NDArray[np.uint32]
NO_CODE = np.uint32(0xFFFFFFFF)  # of a missing value


class Dictionary:
    """Gives every distinct text a code, in the order of first appearance, over any number of batches.

    Memory grows with the number of distinct values, not with the rows.
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, text: pl.Series) -> Codes:
        """Return the code (rows,) uint32 of each text; a null gets `NO_CODE`."""
        array = text.to_arrow()
        encoded = (array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array).dictionary_encode()
        codes = self._codes  # looked up once for each distinct text of the batch only
        fresh = (codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist())
        local = np.append(np.fromiter(fresh, np.uint32, len(encoded.dictionary)), NO_CODE)
        return np.asarray(local[encoded.indices.fill_null(len(local) - 1).to_numpy()])

    def values(self) -> pl.Series:
        """Return the text of every code."""
        import polars as pl

        return pl.Series(list(self._codes), dtype=pl.String)


def as_text(values: pl.Series) -> pl.Series:
    """Return ids or labels of any type as text: 42, 42.0 and "42" are the same id.

    Raises:
        InputError: bytes that are no UTF-8 text; the message names the column.
    """
    import polars as pl

    if values.dtype == pl.String:
        return values
    if values.dtype == pl.Binary:
        return _decoded(values)
    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        return (whole if bool((whole == values).all()) else values).cast(pl.String)
    return values.cast(pl.String)


def _decoded(values: pl.Series) -> pl.Series:
    import polars as pl

    try:
        return values.cast(pl.String)
    except pl.exceptions.ComputeError:
        raise InputError(
            f"column {values.name!r} holds bytes that are not UTF-8 text; write them as text first, for example in "
            "hexadecimal"
        ) from None


def number_in_order(ids: pl.Series) -> npt.NDArray[np.int64]:
    """Return the positions of distinct `ids` in their order: numeric if all are integers, else by code point.

    Example:
        >>> import polars as pl
        >>> number_in_order(pl.Series(["10", "9", "007"])).tolist()
        [2, 1, 0]
    """
    import polars as pl

    if len(ids) and ids.str.contains(r"^-?\d{1,18}$").all():
        frame = pl.DataFrame({"number": ids.cast(pl.Int64), "id": ids})
        return np.asarray(frame.select(pl.arg_sort_by("number", "id")).to_series().to_numpy(), np.int64)
    return np.asarray(ids.arg_sort().to_numpy(), np.int64)


def to_arrow_ids(ids: pl.Series) -> pa.Array:
    """Return `ids` as an Arrow string array (large_string past 2 GiB of text)."""
    array = ids.to_arrow()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.cast(pa.string()) if array.nbytes < 1 << 31 else array.cast(pa.large_string())
