# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Rows of a quantised table, gathered and dequantised in one pass.

A stored row is one run of bytes: codes, then a (scale, zero) pair of float16 for each group (`packing.py`), so that a
lookup touches one place of memory, be it the device's own or pinned memory of the host, which a kernel reads over the
bus row by row: only the bytes of the rows travel.

Shapes: R rows a program, G groups of a row (GP: padded to a power of two), B bytes of codes a group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS, SCORE_WARPS = 2, 1
CODES_HELD = 8192  # bits of codes that a program holds at once


@triton.jit(do_not_specialize=["n", "V"])
def lookup_kernel(
    rows, pairs, ids, out, n, V, PITCH: tl.constexpr, CODES: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, BITS: tl.constexpr, R: tl.constexpr, GP: tl.constexpr,
):  # fmt: skip
    """out[i] = zero + scale * code of the row ids[i], NaN where there is no such row.

    `pairs` is `rows` read as float16, PITCH the bytes of a row.
    """
    B: tl.constexpr = GROUP * BITS // 8
    i = tl.program_id(0) * R + tl.arange(0, R)
    group = tl.arange(0, GP)
    row = tl.load(ids + i, mask=i < n, other=0).to(tl.int64)
    known = (row >= 0) & (row < V)
    row = tl.where(known, row, 0) * PITCH
    wanted = ((i < n)[:, None] & (group < GROUPS)[None, :])[:, :, None]
    there = known[:, None] & (group < GROUPS)[None, :]
    pair = ((row + CODES) // 2)[:, None] + 2 * group[None, :]
    scale = tl.load(pairs + pair, mask=there, other=0.0).to(tl.float32)[:, :, None]
    zero = tl.load(pairs + pair + 1, mask=there, other=float("nan")).to(tl.float32)[:, :, None]
    byte = group[:, None] * B + tl.arange(0, B)[None, :]
    code = tl.load(rows + row[:, None, None] + byte[None, :, :], mask=there[:, :, None], other=0)
    column = group[:, None] * GROUP + tl.arange(0, B)[None, :]
    at = i.to(tl.int64)[:, None, None] * D + column[None, :, :]
    if BITS == 8:
        x = zero + scale * code.to(tl.float32)
        tl.store(out + at, x.to(out.dtype.element_ty), mask=wanted & (column < D)[None, :, :])
    else:
        low = zero + scale * (code & 15).to(tl.float32)
        high = zero + scale * (code >> 4).to(tl.float32)
        tl.store(out + at, low.to(out.dtype.element_ty), mask=wanted & (column < D)[None, :, :])
        tl.store(out + at + B, high.to(out.dtype.element_ty), mask=wanted & (column + B < D)[None, :, :])


@triton.jit(do_not_specialize=["c", "V"])
def score_kernel(
    rows, pairs, ids, queries, out, c, V, PITCH: tl.constexpr, CODES: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BITS: tl.constexpr, R: tl.constexpr, GP: tl.constexpr,
):  # fmt: skip
    """out[q, i] = queries[q] · row ids[q, i] for R of the c candidates of a query, NaN where there is no such row."""
    B: tl.constexpr = GROUP * BITS // 8
    query, i = tl.program_id(1).to(tl.int64), tl.program_id(0) * R + tl.arange(0, R)
    group = tl.arange(0, GP)
    row = tl.load(ids + query * c + i, mask=i < c, other=0).to(tl.int64)
    known = (row >= 0) & (row < V)
    row = tl.where(known, row, 0) * PITCH
    real = group < GROUPS
    there = known[:, None] & real[None, :]
    pair = ((row + CODES) // 2)[:, None] + 2 * group[None, :]
    scale = tl.load(pairs + pair, mask=there, other=0.0).to(tl.float32)
    zero = tl.load(pairs + pair + 1, mask=there, other=0.0).to(tl.float32)
    byte = group[:, None] * B + tl.arange(0, B)[None, :]
    code = tl.load(rows + row[:, None, None] + byte[None, :, :], mask=there[:, :, None], other=0)
    column = group[:, None] * GROUP + tl.arange(0, B)[None, :]
    left = tl.load(queries + query * D + column, mask=real[:, None] & (column < D), other=0.0).to(tl.float32)
    if BITS == 8:
        along = tl.sum(code.to(tl.float32) * left[None, :, :], 2)
        whole = tl.sum(left, 1)
    else:
        right = tl.load(queries + query * D + column + B, mask=real[:, None] & (column + B < D), other=0.0)
        right = right.to(tl.float32)
        along = tl.sum(
            (code & 15).to(tl.float32) * left[None, :, :] + (code >> 4).to(tl.float32) * right[None, :, :], 2
        )
        whole = tl.sum(left + right, 1)
    score = tl.sum(scale * along + zero * whole[None, :], 1)
    score = tl.where(known, score, float("nan"))
    tl.store(out + query * c + i, score.to(out.dtype.element_ty), mask=i < c)


def lookup(rows: Tensor, ids: Tensor, width: int, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return (n, width) of `dtype`; ids (n,) int64 on the device of the result, n at least 1.

    `rows` (V, pitch) uint8 is on that device too, or in pinned memory of the host.
    """
    pitch, groups = rows.shape[1], -(-width // group)
    out = torch.empty(len(ids), width, dtype=dtype, device=ids.device)
    padded = triton.next_power_of_2(groups)
    held = _rows_held(padded * group, bits)
    lookup_kernel[(-(-len(ids) // held),)](
        rows, rows.view(torch.float16), ids, out, len(ids), len(rows), PITCH=pitch,
        CODES=groups * group * bits // 8, D=width, GROUP=group, GROUPS=groups, BITS=bits, R=held, GP=padded,
        num_warps=WARPS,
    )  # fmt: skip
    return out


def scores(rows: Tensor, ids_BC: Tensor, queries_BD: Tensor, bits: int, group: int) -> Tensor:
    """Return the inner products (b, c) of each query with its candidates; sums in float32, b and c at least 1.

    ids int64, queries contiguous; no candidate's row is ever written out.
    """
    (queries, candidates), width = ids_BC.shape, queries_BD.shape[1]
    pitch, groups = rows.shape[1], -(-width // group)
    out = torch.empty(queries, candidates, dtype=queries_BD.dtype, device=ids_BC.device)
    padded = triton.next_power_of_2(groups)
    held = _rows_held(padded * group, bits)
    score_kernel[(-(-candidates // held), queries)](
        rows, rows.view(torch.float16), ids_BC, queries_BD, out, candidates, len(rows), PITCH=pitch,
        CODES=groups * group * bits // 8, D=width, GROUP=group, GROUPS=groups, BITS=bits, R=held, GP=padded,
        num_warps=SCORE_WARPS,
    )  # fmt: skip
    return out


def _rows_held(columns: int, bits: int) -> int:
    """Return the rows a program takes."""
    return max(1, min(64, CODES_HELD // (bits * columns)))


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = {"rows": "*u8", "pairs": "*fp16", "ids": "*i64", "out": "*bf16", "n": "i32", "V": "i32"}
    for width, bits, group in ((64, 4, 64), (512, 4, 64), (512, 4, 32), (512, 8, 64)):
        groups, codes = width // group, width * bits // 8
        padded = triton.next_power_of_2(groups)
        sizes = {"PITCH": codes + 4 * groups, "CODES": codes, "D": width, "GROUP": group, "GROUPS": groups}
        sizes |= {"BITS": bits, "R": _rows_held(padded * group, bits), "GP": padded}
        options = {"num_warps": WARPS}
        found.append((f"lookup {width} int{bits} group {group}", lookup_kernel, types, sizes, options))
        others = {name: kind for name, kind in types.items() if name != "n"} | {"queries": "*bf16", "c": "i32"}
        found.append(
            (f"scores {width} int{bits} group {group}", score_kernel, others, sizes, {"num_warps": SCORE_WARPS})
        )
    return found
