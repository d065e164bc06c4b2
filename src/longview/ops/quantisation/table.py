"""An embedding table in 4 or 8 bits a value, for inference: smaller to hold, and fewer bytes for each lookup."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from longview.errors import InputError
from longview.ops.kernels import on_device_of, why_no_triton
from longview.ops.quantisation.bags import check_bags, check_kinds, check_offsets, summed
from longview.ops.quantisation.packing import Layout, dequantise_block, pairs_of, quantise_block

GROUPS = (32, 64)
BITS = (4, 8)
MOST_ROWS = 2**31 - 1  # kernels keep numbers of rows in 32 bits
BLOCK = 1 << 16  # rows quantised, dequantised or scored at a time


class QuantisedTable(nn.Module):
    """A table (V, D) as codes of `bits` bits, with a float16 scale and zero for each `group` neighbouring values.

    The buffer `rows` (V, pitch) uint8 holds a row's codes, scales and zeros side by side (`packing.py`), so that a
    lookup reads one run of bytes. At a width that is a multiple of the group INT4 takes 4 + 32 / group bits a value:
    3.56 times less than bfloat16 at 64, 3.2 times at 32; INT8 1.88 and 1.78 times.

    Example:
        >>> table = QuantisedTable.from_table(torch.linspace(-1, 1, 128).reshape(2, 64), bits=8)
        >>> bool((table.dequantise() - torch.linspace(-1, 1, 128).reshape(2, 64)).abs().max() < 0.003)
        True
    """

    rows: Tensor

    def __init__(self, num_rows: int, width: int, bits: int, group: int = 64) -> None:
        """Make an empty table, to load a state into; `from_table` makes one of values.

        Raises:
            InputError: bits other than 4 or 8, a group other than 32 or 64, a size below 1, 2^31 rows or more.
        """
        super().__init__()
        if bits not in BITS:
            raise InputError(f"quantised table: bits is {bits}; expected 4 or 8")
        if group not in GROUPS:
            raise InputError(f"quantised table: group is {group}; expected 32 or 64")
        if num_rows < 1 or width < 1:
            raise InputError(f"quantised table: {num_rows} rows of {width} values; expected at least 1 of each")
        if num_rows > MOST_ROWS:
            raise InputError(f"quantised table: {num_rows} rows; at most {MOST_ROWS}, split the table")
        self.layout = Layout(width, bits, group)
        self.register_buffer("rows", torch.zeros(num_rows, self.layout.pitch, dtype=torch.uint8))

    @classmethod
    @torch.no_grad()
    def from_table(cls, weight: Tensor, bits: int, group: int = 64) -> Self:
        """Return `weight` (V, D), any floating dtype, quantised, on the same device.

        With 8 bits each value is within half a step of the original, a step being 1 / 255 of its group's range (and
        what float16 adds to that). With 4 bits scales and zeros are fitted to lower the squared error (`packing.py`).

        Raises:
            InputError: as the constructor; no matrix of floating values; a value that is not finite or beyond
                float16, with its row.
        """
        if weight.dim() != 2 or not weight.is_floating_point():
            raise InputError(
                f"quantised table: the weight is {weight.dtype} of shape {tuple(weight.shape)}; expected a floating "
                "matrix (rows, width)"
            )
        table = cls(len(weight), weight.shape[1], bits, group).to(weight.device)
        for begin in range(0, len(weight), BLOCK):
            block = weight[begin : begin + BLOCK]
            _check_values(block, begin)
            table.rows[begin : begin + BLOCK] = quantise_block(block, table.layout)
        return table

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """The values of a row."""
        return self.layout.width

    @property
    def packed(self) -> Tensor:
        """The codes (V, C) uint8, a view; `packing.py` says which is where."""
        return self.rows[:, : self.layout.codes]

    @property
    def scale(self) -> Tensor:
        """The scale of each group (V, G) float16."""
        return pairs_of(self.rows, self.layout)[0]

    @property
    def zero(self) -> Tensor:
        """The value of code 0 of each group (V, G) float16."""
        return pairs_of(self.rows, self.layout)[1]

    @property
    def nbytes(self) -> int:
        """The bytes the table takes, scales and zeros included."""
        return self.rows.nbytes

    def lookup(self, ids: Tensor, dtype: torch.dtype = torch.float32, *, check: bool | None = None) -> Tensor:
        """Return the rows at `ids`.

        The table may stay in memory of the host while the ids are on a GPU: then its memory must be pinned
        (`pin_memory`), and the kernel fetches over the bus the bytes of the rows it needs, and no more.

        Args:
            ids: any shape, int64 or int32, 0 to V - 1.
            dtype: of the result: float32, bfloat16 or float16.
            check: refuse ids outside the table; None = on a CPU. On a GPU a check waits for the device; unchecked, a
                row that does not exist is one of NaNs.

        Returns:
            (*ids.shape, D) of `dtype` on the device of `ids`.

        Raises:
            InputError: an id outside the table, named; ids or a dtype of the wrong kind; a device that does not fit.
        """
        check_kinds(ids, dtype)
        flat = ids if ids.dim() == 1 else ids.reshape(-1)
        if check or (check is None and not ids.is_cuda):
            self._check_ids(flat)
        found = self._rows_at(flat, dtype)
        return found if ids.dim() == 1 else found.view(*ids.shape, self.width)

    def pooled(
        self,
        ids: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        *,
        mode: str = "sum",
        dtype: torch.dtype = torch.float32,
        check: bool | None = None,
    ) -> Tensor:
        """Return a row for each bag of ids: the sum or the mean of its rows, added up in float32.

        On a GPU a row is read and never written, in the order of its bag, so that the same bags give the same bits.

        Args:
            ids: (n,) of all bags end to end, int64 or int32, 0 to V - 1.
            offsets: (bags + 1,) int64 or int32, where each bag begins and the last one ends: from 0 up to n.
            weights: (n,) floating, what each row is multiplied with in a sum, 0 or of 1e-10 to 1e7; None = 1.
            mode: `sum` or `mean`.
            dtype: of the result: float32, bfloat16 or float16.
            check: refuse ids outside the table and offsets that do not fit; None = on a CPU. On a GPU a check waits for
                the device; unchecked, a row that does not exist makes its bag one of NaNs, and an offset outside counts
                as the nearest one inside.

        Returns:
            (bags, D) of `dtype` on the device of `ids`; zeros for a bag without ids.

        Raises:
            InputError: weights with `mean`, or no such mode; shapes that do not fit; as `lookup`.

        Example:
            >>> table = QuantisedTable.from_table(torch.ones(3, 64), bits=4)
            >>> table.pooled(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]))[:, 0].tolist()
            [2.0, 0.0, 1.0]
        """
        check_kinds(ids, dtype)
        check_bags(ids, offsets, weights, mode)
        if check or (check is None and not ids.is_cuda):
            check_offsets(offsets, len(ids))
            self._check_ids(ids)
        if len(offsets) == 1:
            return torch.empty(0, self.width, dtype=dtype, device=ids.device)
        if self._has_kernel(ids):
            from longview.ops.quantisation.triton_table import pooled

            ids, offsets = ids.contiguous(), offsets.contiguous()
            given = None if weights is None else weights.contiguous()
            with on_device_of(ids):
                return pooled(self.rows, ids, offsets, given, mode == "mean", *self.layout, dtype)
        rows_at = partial(self._rows_at, dtype=torch.float32)
        return summed(rows_at, ids, offsets, weights, mean=mode == "mean", width=self.width, block=BLOCK).to(dtype)

    @torch.no_grad()
    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the whole table (V, D) of `dtype`."""
        return torch.cat([block for _, block in self.blocks(dtype=dtype)])

    @torch.no_grad()
    def blocks(self, size: int = BLOCK, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, values (up to `size`, D)) over the whole table, so that it never exists at once."""
        for begin in range(0, len(self), size):
            yield begin, self._block(begin, min(begin + size, len(self)), dtype)

    @torch.no_grad()
    def scores(self, queries: Tensor, ids: Tensor | None = None, *, block: int = BLOCK) -> Tensor:
        """Return the inner products of queries with rows of the table.

        On a GPU candidates are scored from their codes; their values are never written out.

        Args:
            queries: (b, D), float32, bfloat16 or float16, on the table's device.
            ids: (b, c) candidates of each query, or None for the whole table.
            block: rows dequantised at a time where `ids` is None.

        Returns:
            (b, c), or (b, V); dtype of `queries`.

        Raises:
            InputError: shapes that do not fit; as `lookup`.
        """
        if queries.dim() != 2 or queries.shape[1] != self.width:
            raise InputError(
                f"quantised table: queries have shape {tuple(queries.shape)}; expected (queries, {self.width})"
            )
        if ids is not None:
            if ids.dim() != 2 or len(ids) != len(queries):
                raise InputError(
                    f"quantised table: ids have shape {tuple(ids.shape)}; expected ({len(queries)}, candidates)"
                )
            return self._candidates(queries, ids)
        found = queries.new_empty(len(queries), len(self))
        for begin, values in self.blocks(block, queries.dtype):
            torch.mm(queries, values.T, out=found[:, begin : begin + len(values)])
        return found

    def pin_memory(self) -> Self:
        """Move the table to pinned memory of the host, from where lookups of a GPU read it; return it."""
        self.rows = self.rows.cpu().pin_memory()
        return self

    def extra_repr(self) -> str:
        return f"{len(self)}, {self.width}, bits={self.layout.bits}, group={self.layout.group}"

    def _has_kernel(self, ids: Tensor) -> bool:
        """Return whether a kernel looks `ids` up.

        Raises:
            InputError: a table out of reach of the device of `ids`.
        """
        if not ids.is_cuda:
            if self.rows.is_cuda:
                raise InputError(
                    f"quantised table: ids are on {ids.device} and the table on {self.rows.device}; move the ids"
                )
            return False
        if not self.rows.is_cuda and not self.rows.is_pinned():
            raise InputError(
                f"quantised table: ids are on {ids.device} and the table is in ordinary memory of the host; call "
                "pin_memory() or move the table"
            )
        return why_no_triton(ids.device) is None

    def _rows_at(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        if not ids.numel():
            return torch.empty(0, self.width, dtype=dtype, device=ids.device)
        if self._has_kernel(ids):
            from longview.ops.quantisation.triton_table import lookup

            with on_device_of(ids):
                return lookup(self.rows, ids.contiguous(), *self.layout, dtype)
        return dequantise_block(self.rows[ids.to(self.rows.device).long()].to(ids.device), self.layout, dtype)

    def _candidates(self, queries: Tensor, ids: Tensor) -> Tensor:
        if not (ids.is_cuda and self.rows.is_cuda and ids.numel()) or why_no_triton(ids.device) is not None:
            return torch.einsum("bd,bcd->bc", queries, self.lookup(ids, queries.dtype))
        from longview.ops.quantisation.triton_table import scores

        with on_device_of(ids):
            return scores(self.rows, ids.contiguous(), queries.contiguous(), self.layout.bits, self.layout.group)

    def _block(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        return dequantise_block(self.rows[begin:end], self.layout, dtype)

    def _check_ids(self, ids: Tensor) -> None:
        wrong = ids[(ids < 0) | (ids >= len(self))]
        if wrong.numel():
            raise InputError(
                f"quantised table: id {int(wrong[0])} is outside 0 to {len(self) - 1} ({wrong.numel()} of "
                f"{ids.numel()} ids are)"
            )


def _check_values(block: Tensor, first: int) -> None:
    largest = block.abs().amax(1)
    wrong = ~(largest <= torch.finfo(torch.float16).max)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        what = "a value beyond float16's 65504" if bool(largest[row].isfinite()) else "an infinity or a NaN"
        raise InputError(f"quantised table: row {first + row} has {what}; {int(wrong.sum())} rows of its block do")
