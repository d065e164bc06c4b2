# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels of a sum of looked-up rows with dropout, `summed.py`: one pass over the tokens each way.

Shapes: T tokens, R of them a program, D width padded to a power of two.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from longview.ops.dropout.triton_counter import kept

ELEMENTS, WARPS = 2048, 4  # of a program


def rows_at_once(padded: int) -> int:
    """Return how many tokens a program takes."""
    return max(1, ELEMENTS // padded)


@triton.jit(do_not_specialize=["T", "level"])
def sum_rows(
    out, first, first_ids, second, second_ids, third, third_ids, seed, T,
    first_factor, second_factor, third_factor, level, kept_by,
    TERMS: tl.constexpr, DROP: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """out = dropout of factor * table[id], summed over the first TERMS tables."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    dims = tl.arange(0, PADDED)[None, :]
    there = row < T
    inside = there[:, None] & (dims < WIDTH)
    ids = tl.load(first_ids + row, mask=there, other=0)
    total = tl.load(first + ids[:, None] * WIDTH + dims, mask=inside, other=0.0).to(tl.float32) * first_factor
    if TERMS > 1:
        ids = tl.load(second_ids + row, mask=there, other=0)
        more = tl.load(second + ids[:, None] * WIDTH + dims, mask=inside, other=0.0).to(tl.float32)
        total += more * second_factor
    if TERMS > 2:
        ids = tl.load(third_ids + row, mask=there, other=0)
        more = tl.load(third + ids[:, None] * WIDTH + dims, mask=inside, other=0.0).to(tl.float32)
        total += more * third_factor
    if DROP:
        total = tl.where(kept(tl.load(seed), row, row * 0, level, PADDED), total * kept_by, 0.0)
    tl.store(out + row.to(tl.int64)[:, None] * WIDTH + dims, total, mask=inside)


@triton.jit(do_not_specialize=["T", "level"])
def scale_rows(
    d_out, d_rows, seed, T, factor, level, kept_by,
    DROP: tl.constexpr, R: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """d_rows = the gradient of the first table's rows: d_out * factor where dropout kept the element."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    dims = tl.arange(0, PADDED)[None, :]
    inside = (row < T)[:, None] & (dims < WIDTH)
    at = row.to(tl.int64)[:, None] * WIDTH + dims
    d = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32) * factor
    if DROP:
        d = tl.where(kept(tl.load(seed), row, row * 0, level, PADDED), d * kept_by, 0.0)
    tl.store(d_rows + at, d, mask=inside)


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return what is worth compiling ahead: (name, kernel, signature, constants, options)."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    numbers = {"seed": "*i64", "T": "i32", "level": "i32", "kept_by": "fp32"}
    tables = dict.fromkeys(("first", "second", "third"), "*fp32")
    ids = dict.fromkeys(("first_ids", "second_ids", "third_ids"), "*i64")
    factors = dict.fromkeys(("first_factor", "second_factor", "third_factor"), "fp32")
    for width in (64, 128, 256, 512, 1024):
        sizes = {"DROP": True, "R": rows_at_once(width), "WIDTH": width, "PADDED": width}
        types = {"out": "*bf16", **tables, **ids, **factors, **numbers}
        found.append((f"summed D={width}", sum_rows, types, {"TERMS": 2, **sizes}, {"num_warps": WARPS}))
        types = {"d_out": "*bf16", "d_rows": "*bf16", "factor": "fp32", **numbers}
        found.append((f"scaled D={width}", scale_rows, types, sizes, {"num_warps": WARPS}))
    return found
