# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, var-annotated"
"""Rows of a bfloat16 table gathered, and summed by bag, in the form of the quantised kernels.

Torch's own gather and sums leave much of the memory's speed unused, so that beating them says little of what fewer
bytes are worth; these leave less.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GATHER_WARPS, GATHER_TILES = 4, 4
WARPS, TILES = 1, 4  # of those tried (1 or 2 warps, 2 to 8 tiles) the fastest, or next to it, at rows of 128 and 512


@triton.jit
def gather_kernel(weight, ids, out, n, D: tl.constexpr, W: tl.constexpr, S: tl.constexpr, U: tl.constexpr):
    """out[i] = row ids[i], for U * S of them; W pieces of 16 bytes a row."""
    lane, first, held = tl.arange(0, S * W), tl.program_id(0) * (U * S), ()
    column = (lane % W * 8)[:, None] + tl.arange(0, 8)[None, :]
    for u in tl.static_range(U):
        i = first + u * S + lane // W
        row = tl.load(ids + i, mask=i < n, other=0)
        held += ((i, tl.load(weight + (row * D)[:, None] + column, mask=(i < n)[:, None], other=0.0)),)
    for u in tl.static_range(U):
        i, x = held[u]
        at = out + (i.to(tl.int64) * D)[:, None] + column
        tl.store(at, x, mask=(i < n)[:, None], cache_modifier=".cs")


@triton.jit
def bags_kernel(
    weight, ids, offsets, out, D: tl.constexpr, W: tl.constexpr, S: tl.constexpr, U: tl.constexpr
):  # fmt: skip
    """out[b] = sum of the rows at ids[offsets[b]] … ; W pieces of 16 bytes a row, S rows at once, U times."""
    bag, lane = tl.program_id(0).to(tl.int64), tl.arange(0, S * W)
    begin = tl.load(offsets + bag)
    size, ids, ahead = (tl.load(offsets + bag + 1) - begin).to(tl.int32), ids + begin, ()
    column = (lane % W * 8)[:, None] + tl.arange(0, 8)[None, :]
    sums = tl.zeros([S * W, 8], tl.float32)
    for u in tl.static_range(U):
        i = u * S + lane // W
        ahead += (tl.load(ids + i, mask=i < size, other=0),)
    for first in range(0, size, U * S):
        held, now = (), ahead
        ahead = ()
        for u in tl.static_range(U):  # everything is asked for before anything is used, ids a turn ahead
            i = first + u * S + lane // W
            held += (tl.load(weight + (now[u] * D)[:, None] + column, mask=(i < size)[:, None], other=0.0),)
        for u in tl.static_range(U):
            i = first + (U + u) * S + lane // W
            ahead += (tl.load(ids + i, mask=i < size, other=0),)
        for u in tl.static_range(U):
            sums += held[u].to(tl.float32)
    found = tl.sum(sums.reshape([S, W, 8]), 0).to(out.dtype.element_ty)
    at = (tl.arange(0, W) * 8)[:, None] + tl.arange(0, 8)[None, :]
    tl.store(out + bag * D + at, found)


def gathered(weight: Tensor, ids: Tensor) -> Tensor:
    """Return rows (n, D) of a bfloat16 table; ids (n,) int64, D a power of two from 8 on."""
    width, n = weight.shape[1], len(ids)
    out = torch.empty(n, width, dtype=weight.dtype, device=weight.device)
    pieces = width // 8
    at_once = max(1, 32 * GATHER_WARPS // pieces)
    gather_kernel[(-(-n // (at_once * GATHER_TILES)),)](
        weight, ids, out, n, width, pieces, at_once, GATHER_TILES, num_warps=GATHER_WARPS
    )
    return out


def bags(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """Return sums (bags, D) of bfloat16 rows; ids (n,) and offsets (bags + 1,) int64, D a power of two from 8 on."""
    width, count = weight.shape[1], len(offsets) - 1
    out = torch.empty(count, width, dtype=weight.dtype, device=weight.device)
    pieces = width // 8
    bags_kernel[(count,)](
        weight, ids, offsets, out, width, pieces, max(1, 32 * WARPS // pieces), TILES, num_warps=WARPS
    )
    return out


def shipped() -> list[tuple[str, object, dict[str, str], dict[str, int], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    types = {"weight": "*bf16", "ids": "*i64", "out": "*bf16"}
    found: list[tuple[str, object, dict[str, str], dict[str, int], dict[str, int]]] = []
    for width in (128, 512):
        pieces = width // 8
        sizes = {"D": width, "W": pieces, "S": max(1, 32 * WARPS // pieces), "U": TILES}
        found.append((f"bags {width}", bags_kernel, types | {"offsets": "*i64"}, sizes, {"num_warps": WARPS}))
        sizes = {"D": width, "W": pieces, "S": max(1, 32 * GATHER_WARPS // pieces), "U": GATHER_TILES}
        found.append((f"rows {width}", gather_kernel, types | {"n": "i32:16"}, sizes, {"num_warps": GATHER_WARPS}))
    return found
