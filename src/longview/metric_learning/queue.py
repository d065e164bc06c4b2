"""A first-in, first-out queue of labelled rows in fixed buffers, with the newest batch waiting at its door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CHUNK = 16_384  # rows rewritten at a time
COLUMNS = ("rows", "labels", "sample_ids", "inserted", "cohort")
HOST = {"cursor", "count", "inserted", "cohort", "pending_inserted", "pending_cohort"}  # buffers that stay on the CPU


class Rows(NamedTuple):
    """values (b, d), labels (b,) and sample_ids (b,) int64."""

    values: Tensor
    labels: Tensor
    sample_ids: Tensor

    def where(self, kept: Tensor | None) -> Rows:
        """Return the rows that a mask (b,) keeps."""
        if kept is None:
            return self
        places = kept.nonzero().flatten()  # of which a device would else be asked for each column
        return Rows(*(column[places] for column in self))


class FixedBuffers(nn.Module):
    """A module whose buffers keep their dtypes whatever the model is cast to, those named in `host` on the CPU."""

    host: frozenset[str] = frozenset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedBuffers:
        for child in self.children():
            child._apply(fn)  # type: ignore[no-untyped-call]
        for name, value in self._buffers.items():
            if value is not None and name not in self.host:
                moved = fn(value)
                self._buffers[name] = moved if moved.dtype == value.dtype else value.to(moved.device)
        return self


class RowQueue(FixedBuffers):
    """`capacity` rows of `width` values in a ring, with labels, sample ids, step and cohort of each.

    `put` leaves a batch waiting and `commit` writes it over the oldest rows, so that whoever read the ring in between
    (a loss that has yet to run backward) read what stays. The place of the next row, the number of rows and their
    steps are kept on the CPU: reading them never waits for a device. With `sums`, `row_sum` and `row_square_sum`
    (d,) float64 are those of the rows in the ring.
    """

    host = frozenset(HOST)
    rows: Tensor
    labels: Tensor
    sample_ids: Tensor
    inserted: Tensor
    cohort: Tensor
    cursor: Tensor
    count: Tensor
    row_sum: Tensor
    row_square_sum: Tensor
    pending_rows: Tensor
    pending_labels: Tensor

    def __init__(self, capacity: int, width: int, dtype: torch.dtype, *, sums: bool = False) -> None:
        super().__init__()
        self.capacity, self.sums = capacity, sums
        for prefix, size in (("", capacity), ("pending_", 0)):
            self.register_buffer(f"{prefix}rows", torch.zeros(size, width, dtype=dtype))
            for name in COLUMNS[1:]:
                self.register_buffer(prefix + name, torch.full((size,), -1, dtype=torch.int64))
        for name in ("cursor", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        for name in ("row_sum", "row_square_sum"):
            self.register_buffer(name, torch.zeros(width, dtype=torch.float64))

    def __len__(self) -> int:
        """Rows in the ring and at the door, at most the capacity."""
        return min(self.capacity, int(self.count) + len(self.pending_rows))

    def put(self, rows: Rows, step: int, cohort: int, *, copy: bool) -> None:
        """Leave the rows of a batch, at most `capacity`, at the door; what was there must have been committed.

        Labels and ids stay the tensors that were given, and so do values that nothing has to `copy`.
        """
        stamps = (torch.full((len(rows.labels),), number) for number in (step, cohort))
        values = rows.values.to(self.rows.dtype, copy=copy)
        self._wait(values, rows.labels, rows.sample_ids, *stamps)

    @torch.no_grad()
    def commit(self) -> None:
        """Write the rows at the door over the oldest ones."""
        number = len(self.pending_rows)
        if not number:
            return
        cursor, count = int(self.cursor), int(self.count)
        first = min(number, self.capacity - cursor)
        waiting = [self._held(f"pending_{name}") for name in COLUMNS]
        if first == number:
            self._write(cursor, waiting, evicting=count == self.capacity)
        else:
            self._write(cursor, [column[:first] for column in waiting], evicting=count == self.capacity)
            self._write(0, [column[first:] for column in waiting], evicting=True)
        self.cursor.fill_((cursor + number) % self.capacity)
        if count < self.capacity:
            self.count.fill_(min(count + number, self.capacity))
        self._empty()

    def clear(self) -> None:
        """Forget every row."""
        self.cursor.zero_()
        self.count.zero_()
        self.row_sum.zero_()
        self.row_square_sum.zero_()
        self._empty()

    @torch.no_grad()
    def rewrite(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        """Replace every row by what `change` makes of it in `dtype`, in place."""
        self.row_sum.zero_()
        self.row_square_sum.zero_()
        for first in range(0, int(self.count), CHUNK):
            part = self.rows[first : min(first + CHUNK, int(self.count))]
            part.copy_(change(part.to(dtype)))
            self._count(part, 1)

    def moments(self, dtype: torch.dtype, floor: float, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return mean and biased standard deviation of the stored rows of all ranks, (2, d); needs `sums`.

        `reduce` sums over ranks. Without a row, mean 0 and standard deviation 1.
        """
        count = self.row_sum.new_full((1,), float(self.count))
        sums = reduce(torch.cat([self.row_sum, self.row_square_sum, count]))
        mean, square = (sums[:-1] / sums[-1].clamp_min(1)).view(2, -1)
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(floor)
        return torch.stack([mean, torch.where(sums[-1] > 0, std, 1.0)]).to(dtype)

    def newest(self) -> Tensor:
        """Return the places in the ring of its rows, oldest first, (m,) int64 on the CPU."""
        count = int(self.count)
        return (int(self.cursor) - count + torch.arange(count)) % self.capacity

    def _write(self, place: int, columns: list[Tensor], *, evicting: bool) -> None:
        """Write `columns` from `place` of the ring on."""
        there = slice(place, place + len(columns[0]))
        rows, *held = (self._held(name)[there] for name in COLUMNS)
        new_rows, *new = columns
        if self.sums and evicting:
            self._count(rows, -1)
        rows.copy_(new_rows)
        for pair in (slice(0, 2), slice(2, 4)):  # of one dtype and device, which one kernel copies
            torch._foreach_copy_(held[pair], new[pair])
        if self.sums:
            self._count(rows, 1)

    def _wait(self, *columns: Tensor) -> None:
        """Leave `columns` at the door."""
        for name, value in zip(COLUMNS, columns, strict=True):
            self._buffers[f"pending_{name}"] = value

    def _empty(self) -> None:
        """Leave nothing at the door."""
        number, stamp = self.pending_labels.new_empty(0), self.cursor.new_empty(0)
        self._wait(self.rows.new_empty(0, self.rows.shape[1]), number, number, stamp, stamp)

    def _held(self, name: str) -> Tensor:
        value = self._buffers[name]
        assert value is not None
        return value

    def _count(self, rows: Tensor, sign: int) -> None:
        values = rows.double()
        self.row_sum.add_(values.sum(0), alpha=sign)
        self.row_square_sum.add_(values.square().sum(0), alpha=sign)

    def _tail(self, name: str) -> tuple[int, ...]:
        return tuple(self.rows.shape[1:]) if name == "rows" else ()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # As many rows wait at the door as there were: torch would refuse another number.
        for name in COLUMNS:
            saved = state.get(f"{prefix}pending_{name}")
            if isinstance(saved, Tensor) and saved.shape[1:] == self._tail(name):
                here = getattr(self, f"pending_{name}")
                setattr(self, f"pending_{name}", here.new_empty(saved.shape))
        super()._load_from_state_dict(state, prefix, *rest)
