# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The output product of narrow layers on Hopper, with bias and residual: results of `triton_output.output_kernel`.

Here it is the weights that stay: a program keeps BN of their rows, all K columns of them, and goes over the tokens, BM
at a time. A tile then moves its rows, residual and result; with rows that stay (`gluon_pipeline.py`) it would move as
much of the weights and a part of the rows besides, and what goes through the L2 cache is what limits this product.
Programs next to each other have the same rows at about the same time, so that memory is read once.

One warp fills shared memory, one fetches each tile's residual into the place the tile will leave from, and two
warpgroups multiply in turns. Barriers know only parity: `full` begins a phase only after `empty` ended the one before,
and `there` has but one. Nobody waits for a later tile than its own, so programs with no, one or many tiles all end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from longview.ops.hstu_layer.gluon_pipeline import await_kernel_before, barriers, described, leave, multiply, type_of
from longview.ops.hstu_layer.tiling import BLOCK, IN_OUTPUT, Staying, processors, stages_for

MULTIPLYING, FILLING = 240, 24  # registers of a thread, see gluon_project.py
OPTIONS = {"num_warps": 4, "maxnreg": 168, "launch_pdl": True}


@gluon.jit
def walk_of(T, BM: gl.constexpr, COLUMNS: gl.constexpr):
    """Return the first block of rows of this program, the end, and the step to its next one."""
    return gl.program_id(0) // COLUMNS, gl.cdiv(T, BM), gl.num_programs(0) // COLUMNS


@gluon.jit
def fill(gated, w, weights, rows, ring, T, COLUMNS: gl.constexpr):
    """Fetch the weights once and every tile's rows into a ring."""
    there, _, full, empty = ring
    CHUNKS: gl.constexpr = weights.shape[0]
    BN: gl.constexpr = weights.shape[1]
    BK: gl.constexpr = weights.shape[2]
    STAGES: gl.constexpr = rows.shape[0]
    BM: gl.constexpr = rows.shape[1]
    n = gl.program_id(0) % COLUMNS * BN
    around = 0
    first, end, step = walk_of(T, BM, COLUMNS)
    for block in range(first, end, step):
        for k in range(CHUNKS):
            if around == 0:
                mbarrier.expect(there.index(k), w.block_type.nbytes)
                tma.async_copy_global_to_shared(w, [n, k * BK], there.index(k), weights.index(k))
            s = k % STAGES
            mbarrier.wait(empty.index(s), ((around + k // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), gated.block_type.nbytes)
            tma.async_copy_global_to_shared(gated, [block * BM, k * BK], full.index(s), rows.index(s))
        around += CHUNKS // STAGES


@gluon.jit
def fetch_residual(z, leaving, arrived, free, T, COLUMNS: gl.constexpr):
    """Fetch every tile's residual as soon as the tile before has left."""
    LEAVING: gl.constexpr = leaving.shape[0]
    BM: gl.constexpr = leaving.shape[1]
    n = gl.program_id(0) % COLUMNS * leaving.shape[2]
    tile = 0
    first, end, step = walk_of(T, BM, COLUMNS)
    for block in range(first, end, step):
        place = tile % LEAVING
        mbarrier.wait(free.index(place), (tile // LEAVING + 1) & 1)
        mbarrier.expect(arrived.index(place), z.block_type.nbytes)
        tma.async_copy_global_to_shared(z, [block * BM, n], arrived.index(place), leaving.index(place))
        tile += 1


@gluon.jit
def output_tiles(out, bias, memory, T, FIRST: gl.constexpr, COLUMNS: gl.constexpr):
    """Every second tile, from the FIRST on: product, bias and residual."""
    rows, weights, leaving, ring, turn, free, arrived = memory
    BM: gl.constexpr = rows.shape[1]
    BN: gl.constexpr = weights.shape[1]
    LEAVING: gl.constexpr = leaving.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    n = gl.program_id(0) % COLUMNS * BN
    tile = FIRST
    first, end, step = walk_of(T, BM, COLUMNS)
    for block in range(first + FIRST * step, end, 2 * step):
        acc = multiply(rows, weights, ring, turn, tile, 0, False, layout, ROWS_STAY=False)
        acc += gl.expand_dims(gl.load(bias + n + gl.arange(0, BN, gl.SliceLayout(0, layout))).to(gl.float32), 0)
        place = tile % LEAVING
        # The tile before has left this place: else the arrival of its residual could be taken for that of this.
        mbarrier.wait(free.index(place), (tile // LEAVING + 1) & 1)
        mbarrier.wait(arrived.index(place), tile // LEAVING & 1)
        acc += leaving.index(place).load(layout).to(gl.float32)
        leave(acc, out, leaving.index(place), block * BM, n)
        mbarrier.arrive(free.index(place), count=1)
        tile += 2


@gluon.jit(do_not_specialize=["T"])
def output_staying_kernel(
    gated, w, z, out, bias, T, COLUMNS: gl.constexpr, CHUNKS: gl.constexpr, STAGES: gl.constexpr,
    LEAVING: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """z + gated @ w.T + bias; gated, w, z and out are tensor descriptors. REGISTERS: to multiply and to fill.

    COLUMNS: blocks of columns of the result, of which a program has one; the number of programs is a multiple.
    """
    BM: gl.constexpr = gated.block_type.shape[0]
    BN: gl.constexpr = w.block_type.shape[0]
    rows = gl.allocate_shared_memory(gated.dtype, [STAGES, BM, gated.block_type.shape[1]], gated.layout)
    weights = gl.allocate_shared_memory(w.dtype, [CHUNKS, BN, w.block_type.shape[1]], w.layout)
    leaving = gl.allocate_shared_memory(out.dtype, [LEAVING, BM, BN], out.layout)
    there = barriers(CHUNKS, 1)
    ring = (there, there, barriers(STAGES, 1), barriers(STAGES, 1))  # weights that stay are never given back
    turn, free, arrived = barriers(1, 1), barriers(LEAVING, 1), barriers(LEAVING, 1)
    fence_async_shared()
    await_kernel_before()
    memory = (rows, weights, leaving, ring, turn, free, arrived)
    gl.warp_specialize(
        [
            (output_tiles, (out, bias, memory, T, 0, COLUMNS)),
            (output_tiles, (out, bias, memory, T, 1, COLUMNS)),
            (fill, (gated, w, weights, rows, ring, T, COLUMNS)),
            (fetch_residual, (z, leaving, arrived, free, T, COLUMNS)),
        ],
        [4, 1, 1], [REGISTERS[0], REGISTERS[1], REGISTERS[1]],
    )  # fmt: skip


def output_staying(z_TD: Tensor, gated_TG: Tensor, weight: Tensor, bias: Tensor, out: Tensor, launch: Staying) -> None:
    """Fill `out` (T, D), dtype of z."""
    (rows, inner), columns = gated_TG.shape, z_TD.shape[1] // BLOCK
    programs = max(1, min(-(-rows // BLOCK), processors(z_TD.device) // columns)) * columns
    output_staying_kernel[(programs,)](
        described(gated_TG, launch.depth), described(weight, launch.depth), described(z_TD, BLOCK),
        described(out, BLOCK), bias, rows, COLUMNS=columns, CHUNKS=inner // launch.depth, STAGES=launch.stages,
        LEAVING=launch.leaving, REGISTERS=(MULTIPLYING, FILLING), **OPTIONS,
    )  # fmt: skip


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    depth, leaving = IN_OUTPUT.values()
    rows = type_of(depth, torch.bfloat16)
    tile = type_of(BLOCK, torch.bfloat16)
    types = {"gated": rows, "w": rows, "z": tile, "out": tile, "bias": "*fp32", "T": "i32"}
    for width in (256, 512):
        sizes = {"COLUMNS": width // BLOCK, "CHUNKS": width // depth, "STAGES": stages_for(width, **IN_OUTPUT)}
        constants = {**sizes, "LEAVING": leaving, "REGISTERS": (MULTIPLYING, FILLING)}
        found.append((f"output staying {width}", output_staying_kernel, types, constants, OPTIONS))
    return found
