# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The projection of narrow layers on Hopper: statistics of the norm, product, bias and SiLU in one kernel.

Two warps measure the rows while others multiply them as they are; the norm enters where a tile leaves, as in
`triton_project.py`, whose results these are. Warps: see `gluon_pipeline.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from longview.ops.hstu_layer.gluon_pipeline import (
    await_kernel_before,
    barriers,
    described,
    fill,
    leave,
    multiply,
    type_of,
)
from longview.ops.hstu_layer.tiling import BLOCK, IN_PROJECTION, Staying, stages_for

# Registers of a thread: 168 in 12 warps at the start, shared out anew among those that multiply, measure and fill.
MEASURED, GIVEN = (200, 104, 24), (240, 24, 24)
OPTIONS = {"num_warps": 4, "maxnreg": 168, "launch_pdl": True}


@gluon.jit
def tanh_approx(x):
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def sums_with(sums, chunk, first, layout: gl.constexpr):
    """Return (pivot, sum of x - pivot, sum of its squares) of rows with another chunk of them."""
    pivot, total, squares = sums
    x = chunk.load(layout).to(gl.float32)
    pivot = gl.where(first, gl.sum(x, 1) / x.shape[1], pivot)
    x -= gl.expand_dims(pivot, 1)
    return pivot, total + gl.sum(x, 1), squares + gl.sum(x * x, 1)


@gluon.jit
def settle(sums, mean, rstd, means, scales, m, first, T, epsilon, K: gl.constexpr):
    """Store the statistics of the rows from `first` of the block at m on."""
    pivot, total, squares = sums
    moved = total / K
    mu = pivot + moved
    scale = 1.0 / gl.sqrt(squares / K - moved * moved + epsilon)
    row = m + first + gl.arange(0, mu.shape[0], mu.type.layout)
    gl.store(mean + row, mu, mask=row < T)
    gl.store(rstd + row, scale, mask=row < T)
    means.slice(first, mu.shape[0]).store(mu)
    scales.slice(first, mu.shape[0]).store(scale)


@gluon.jit
def measure(mean, rstd, rows, known, rows_full, rows_empty, T, epsilon, PARTS: gl.constexpr):
    """Statistics of the rows in shared memory, into global memory and into `known`.

    Sums are of distances from the mean of the first chunk, so that an offset common to a row costs no precision. They
    grow as chunks arrive, in four quarters of the block: half of a row a thread takes few registers.
    """
    means, scales, ready, read = known
    CHUNKS: gl.constexpr = rows.shape[0]
    BM: gl.constexpr = rows.shape[1]
    K: gl.constexpr = CHUNKS * rows.shape[2]
    WARPS: gl.constexpr = gl.num_warps()
    HELD: gl.constexpr = 16 * WARPS
    gl.static_assert(4 * HELD == BM)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [WARPS, 1], [1, 0])
    which = 0
    for item in range(gl.program_id(0), gl.cdiv(T, BM) * PARTS, gl.num_programs(0)):
        none = gl.zeros((HELD,), gl.float32, gl.SliceLayout(1, layout))
        a = none, none, none
        b, c, d = a, a, a
        for k in range(CHUNKS):
            mbarrier.wait(rows_full.index(k), which & 1)
            chunk = rows.index(k)
            a = sums_with(a, chunk.slice(0, HELD, dim=0), k == 0, layout)
            b = sums_with(b, chunk.slice(HELD, HELD, dim=0), k == 0, layout)
            c = sums_with(c, chunk.slice(2 * HELD, HELD, dim=0), k == 0, layout)
            d = sums_with(d, chunk.slice(3 * HELD, HELD, dim=0), k == 0, layout)
            fence_async_shared()
            mbarrier.arrive(rows_empty.index(k), count=1)
        mbarrier.wait(read.index(0), (which & 1) ^ 1)
        m = item // PARTS * BM
        settle(a, mean, rstd, means, scales, m, 0, T, epsilon, K)
        settle(b, mean, rstd, means, scales, m, HELD, T, epsilon, K)
        settle(c, mean, rstd, means, scales, m, 2 * HELD, T, epsilon, K)
        settle(d, mean, rstd, means, scales, m, 3 * HELD, T, epsilon, K)
        mbarrier.arrive(ready.index(0), count=1)
        which += 1


@gluon.jit
def statistics_of(mean, rstd, known, m, T, which, last, BM: gl.constexpr, MEASURE: gl.constexpr, layout: gl.constexpr):
    """Return mean and 1/deviation of the rows from m on, as soon as they are known."""
    if MEASURE:
        means, scales, ready, read = known
        mbarrier.wait(ready.index(0), which & 1)
        mu, scale = means.load(layout), scales.load(layout)
        mbarrier.arrive(read.index(0), count=1, pred=last)
    else:
        row = m + gl.arange(0, BM, layout)
        mu = gl.load(mean + row, mask=row < T, other=0.0)
        scale = gl.load(rstd + row, mask=row < T, other=0.0)
    return mu, scale


@gluon.jit
def project_tiles(
    given, results, memory, T,
    FIRST: gl.constexpr, N: gl.constexpr, ACTIVATED: gl.constexpr, PARTS: gl.constexpr, NORMED: gl.constexpr,
    MEASURE: gl.constexpr, SAVE: gl.constexpr,
):  # fmt: skip
    """Every second tile, from the FIRST on: product, norm, bias and SiLU."""
    mean, rstd, row_sum, shift = given
    out, pre = results
    rows, weights, leaving, known, ring, turn, free = memory
    BM: gl.constexpr = rows.shape[1]
    BN: gl.constexpr = weights.shape[1]
    ACROSS: gl.constexpr = N // BN // PARTS
    LEAVING: gl.constexpr = leaving.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    which = 0
    for item in range(gl.program_id(0), gl.cdiv(T, BM) * PARTS, gl.num_programs(0)):
        m = item // PARTS * BM
        for j in range(FIRST, ACROSS, 2):
            tile = which * ACROSS + j
            last = j >= ACROSS - 2
            n = (item % PARTS * ACROSS + j) * BN
            acc = multiply(rows, weights, ring, turn, tile, which, last, layout)
            column = n + gl.arange(0, BN, gl.SliceLayout(0, layout))
            if not NORMED:
                along: gl.constexpr = gl.SliceLayout(1, layout)
                mu, scale = statistics_of(mean, rstd, known, m, T, which, last, BM, MEASURE, along)
                sums = gl.load(row_sum + column)
                acc = gl.expand_dims(scale, 1) * (acc - gl.expand_dims(mu, 1) * gl.expand_dims(sums, 0))
            else:
                acc += gl.expand_dims(gl.load(shift + column), 0)
            place = tile % LEAVING
            mbarrier.wait(free.index(place), (tile // LEAVING + 1) & 1)
            if not NORMED:  # after the wait, across which loads stay apart: registers hold one row of columns at a time
                acc += gl.expand_dims(gl.load(shift + column), 0)
            if SAVE:
                leave(acc, pre, leaving.index(place), m, n)
                gl.thread_barrier()
            half = 0.5 * acc
            y = half * tanh_approx(half) + half
            if ACTIVATED < N:
                y = gl.where(gl.expand_dims(column < ACTIVATED, 0), y, acc)
            leave(y, out, leaving.index(place), m, n)
            mbarrier.arrive(free.index(place), count=1)
        which += 1


@gluon.jit(do_not_specialize=["T"])
def project_staying_kernel(
    x, w, out, pre, mean, rstd, row_sum, shift, T, epsilon,
    N: gl.constexpr, CHUNKS: gl.constexpr, ACTIVATED: gl.constexpr, NORMED: gl.constexpr, MEASURE: gl.constexpr,
    SAVE: gl.constexpr, STAGES: gl.constexpr, LEAVING: gl.constexpr, PARTS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """SiLU(norm(x) @ w.T + shift), x being normalised already where NORMED; MEASURE: mean and rstd are results.

    x, w, out and pre are tensor descriptors. REGISTERS: of those that multiply, measure and fill.
    """
    BM: gl.constexpr = x.block_type.shape[0]
    BN: gl.constexpr = w.block_type.shape[0]
    rows = gl.allocate_shared_memory(x.dtype, [CHUNKS, BM, x.block_type.shape[1]], x.layout)
    weights = gl.allocate_shared_memory(w.dtype, [STAGES, BN, w.block_type.shape[1]], w.layout)
    leaving = gl.allocate_shared_memory(out.dtype, [LEAVING, BM, BN], out.layout)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    means = gl.allocate_shared_memory(gl.float32, [BM], plain)
    scales = gl.allocate_shared_memory(gl.float32, [BM], plain)
    known = (means, scales, barriers(1, 1), barriers(1, 2))
    USERS: gl.constexpr = 3 if MEASURE else 2
    ring = (barriers(CHUNKS, 1), barriers(CHUNKS, USERS), barriers(STAGES, 1), barriers(STAGES, 1))
    turn, free = barriers(1, 1), barriers(LEAVING, 1)
    fence_async_shared()
    await_kernel_before()
    given, results = (mean, rstd, row_sum, shift), (out, pre)
    memory = (rows, weights, leaving, known, ring, turn, free)
    if MEASURE:
        gl.warp_specialize(
            [
                (project_tiles, (given, results, memory, T, 0, N, ACTIVATED, PARTS, NORMED, MEASURE, SAVE)),
                (project_tiles, (given, results, memory, T, 1, N, ACTIVATED, PARTS, NORMED, MEASURE, SAVE)),
                (measure, (mean, rstd, rows, known, ring[0], ring[1], T, epsilon, PARTS)),
                (fill, (x, w, rows, weights, ring, T, N, PARTS)),
            ],
            [4, 2, 1], [REGISTERS[0], REGISTERS[1], REGISTERS[2]],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (project_tiles, (given, results, memory, T, 0, N, ACTIVATED, PARTS, NORMED, MEASURE, SAVE)),
                (project_tiles, (given, results, memory, T, 1, N, ACTIVATED, PARTS, NORMED, MEASURE, SAVE)),
                (fill, (x, w, rows, weights, ring, T, N, PARTS)),
            ],
            [4, 1], [REGISTERS[0], REGISTERS[2]],
        )  # fmt: skip


def project_staying(
    x_TK: Tensor,
    weight: Tensor,
    out: Tensor,
    pre: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    row_sum: Tensor,
    shift: Tensor,
    epsilon: float,
    launch: Staying,
    *,
    activated: int,
    normed: bool,
    measure: bool,
) -> None:
    """Fill `out` (T, N) and, where given, `pre` (T, activated); with `measure` also the statistics."""
    (rows, inner), columns = x_TK.shape, len(weight)
    project_staying_kernel[(launch.programs(rows, x_TK.device),)](
        described(x_TK, launch.depth), described(weight, launch.depth), described(out, BLOCK),
        None if pre is None else described(pre, BLOCK), *statistics, row_sum, shift, rows, epsilon,
        N=columns, CHUNKS=inner // launch.depth, ACTIVATED=activated, NORMED=normed, MEASURE=measure,
        SAVE=pre is not None, **launch.constants(), REGISTERS=MEASURED if measure else GIVEN, **OPTIONS,
    )  # fmt: skip


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    depth, leaving = IN_PROJECTION.values()
    rows, tile = type_of(depth, torch.bfloat16), type_of(BLOCK, torch.bfloat16)
    types = {"x": rows, "w": rows, "out": tile, "T": "i32", "epsilon": "fp32"}
    types.update(dict.fromkeys(("mean", "rstd", "row_sum", "shift"), "*fp32"))
    for width in (256, 512):
        for kind, save in (("measured", False), ("measured", True), ("given", True), ("normed", True)):
            measured, normed = kind == "measured", kind == "normed"
            sizes = {"N": 4 * width, "CHUNKS": width // depth, "ACTIVATED": 4 * width, "NORMED": normed}
            sizes |= {"MEASURE": measured, "SAVE": save, "STAGES": stages_for(width, **IN_PROJECTION)}
            sizes |= {"LEAVING": leaving, "PARTS": 1}
            constants = {**sizes, "REGISTERS": MEASURED if measured else GIVEN, **({} if save else {"pre": None})}
            name = f"project staying {width} {kind}"
            kinds = {**types, "pre": tile} if save else types
            found.append((name + (" save" if save else ""), project_staying_kernel, kinds, constants, OPTIONS))
    return found
