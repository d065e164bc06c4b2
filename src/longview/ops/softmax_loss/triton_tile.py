# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Loads and stores of tiles of rows inside a kernel, and the sizes of tiles."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

INVERSE_LOG2 = tl.constexpr(0.6931471805599453)
PROGRAMS = 264  # two for each multiprocessor of an H100 or H200; fixed, so that bits do not depend on the device


class Tile(NamedTuple):
    """Queries and items of a tile of logits, and how a program that walks over such tiles is built."""

    rows: int
    items: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """Return what a launch passes."""
        return {"ROWS": self.rows, "ITEMS": self.items, "num_warps": self.warps, "num_stages": self.stages}


def split(outer: int, inner: int, size: int) -> tuple[int, int]:
    """Return (splits, how much of `inner` each takes) so that `outer` blocks keep a device busy.

    Each split takes a multiple of `size`, at least four of them where there are that many, and none is empty.
    """
    blocks = -(-inner // size)
    wanted = max(1, min(PROGRAMS // outer, blocks // 4))
    each = -(-blocks // wanted)
    return -(-blocks // each), each * size


@triton.jit
def load_rows(base, row, stop, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return rows `row` (r,) of a contiguous matrix as (r, PADDED), zeros from row `stop` and column WIDTH on."""
    return load_some_rows(base, row, row < stop, WIDTH, PADDED)


@triton.jit
def load_some_rows(base, row, taken, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return rows `row` (r,) of a contiguous matrix as (r, PADDED), zeros where not `taken` (r,)."""
    dims = tl.arange(0, PADDED)
    inside = taken[:, None]
    if WIDTH < PADDED:
        inside = inside & (dims[None, :] < WIDTH)
    return tl.load(base + row.to(tl.int64)[:, None] * WIDTH + dims[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(base, row, stop, values, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write `values` (r, PADDED) to rows `row` below `stop` of a contiguous matrix, in the dtype that is there."""
    dims = tl.arange(0, PADDED)
    inside = (row < stop)[:, None]
    if WIDTH < PADDED:
        inside = inside & (dims[None, :] < WIDTH)
    place = base + row.to(tl.int64)[:, None] * WIDTH + dims[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=inside)
