# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The output product of narrow layers on Hopper, with bias and residual: results of `triton_output.output_kernel`.

A warp fetches each tile's residual into the place the tile will leave from, while the tile is multiplied. Warps: see
`gluon_pipeline.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from longview.ops.hstu_layer.gluon_pipeline import (
    await_kernel_before,
    barriers,
    described,
    fill,
    leave,
    multiply,
    type_of,
)
from longview.ops.hstu_layer.tiling import BLOCK, IN_OUTPUT, Staying, stages_for

MULTIPLYING, FILLING = 240, 24  # registers of a thread, see gluon_project.py
OPTIONS = {"num_warps": 4, "maxnreg": 168, "launch_pdl": True}


@gluon.jit
def fetch_residual(z, leaving, arrived, free, T, N: gl.constexpr, PARTS: gl.constexpr):
    """Fetch every tile's residual as soon as the tile before has left."""
    LEAVING: gl.constexpr = leaving.shape[0]
    BM: gl.constexpr = leaving.shape[1]
    BN: gl.constexpr = leaving.shape[2]
    ACROSS: gl.constexpr = N // BN // PARTS
    tile = 0
    for item in range(gl.program_id(0), gl.cdiv(T, BM) * PARTS, gl.num_programs(0)):
        for j in range(ACROSS):
            place = tile % LEAVING
            mbarrier.wait(free.index(place), (tile // LEAVING + 1) & 1)
            mbarrier.expect(arrived.index(place), z.block_type.nbytes)
            n = (item % PARTS * ACROSS + j) * BN
            tma.async_copy_global_to_shared(z, [item // PARTS * BM, n], arrived.index(place), leaving.index(place))
            tile += 1


@gluon.jit
def output_tiles(out, bias, memory, T, FIRST: gl.constexpr, N: gl.constexpr, PARTS: gl.constexpr):
    """Every second tile, from the FIRST on: product, bias and residual."""
    rows, weights, leaving, ring, turn, free, arrived = memory
    BM: gl.constexpr = rows.shape[1]
    BN: gl.constexpr = weights.shape[1]
    ACROSS: gl.constexpr = N // BN // PARTS
    LEAVING: gl.constexpr = leaving.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    which = 0
    for item in range(gl.program_id(0), gl.cdiv(T, BM) * PARTS, gl.num_programs(0)):
        for j in range(FIRST, ACROSS, 2):
            tile = which * ACROSS + j
            n = (item % PARTS * ACROSS + j) * BN
            acc = multiply(rows, weights, ring, turn, tile, which, j >= ACROSS - 2, layout)
            acc += gl.expand_dims(gl.load(bias + n + gl.arange(0, BN, gl.SliceLayout(0, layout))).to(gl.float32), 0)
            place = tile % LEAVING
            # The tile before has left this place: else the arrival of its residual could be taken for that of this.
            mbarrier.wait(free.index(place), (tile // LEAVING + 1) & 1)
            mbarrier.wait(arrived.index(place), tile // LEAVING & 1)
            acc += leaving.index(place).load(layout).to(gl.float32)
            leave(acc, out, leaving.index(place), item // PARTS * BM, n)
            mbarrier.arrive(free.index(place), count=1)
        which += 1


@gluon.jit(do_not_specialize=["T"])
def output_staying_kernel(
    gated, w, z, out, bias, T, N: gl.constexpr, CHUNKS: gl.constexpr, STAGES: gl.constexpr, LEAVING: gl.constexpr,
    PARTS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """z + gated @ w.T + bias; gated, w, z and out are tensor descriptors. REGISTERS: to multiply and to fill."""
    BM: gl.constexpr = gated.block_type.shape[0]
    BN: gl.constexpr = w.block_type.shape[0]
    rows = gl.allocate_shared_memory(gated.dtype, [CHUNKS, BM, gated.block_type.shape[1]], gated.layout)
    weights = gl.allocate_shared_memory(w.dtype, [STAGES, BN, w.block_type.shape[1]], w.layout)
    leaving = gl.allocate_shared_memory(out.dtype, [LEAVING, BM, BN], out.layout)
    ring = (barriers(CHUNKS, 1), barriers(CHUNKS, 2), barriers(STAGES, 1), barriers(STAGES, 1))
    turn, free, arrived = barriers(1, 1), barriers(LEAVING, 1), barriers(LEAVING, 1)
    fence_async_shared()
    await_kernel_before()
    memory = (rows, weights, leaving, ring, turn, free, arrived)
    gl.warp_specialize(
        [
            (output_tiles, (out, bias, memory, T, 0, N, PARTS)),
            (output_tiles, (out, bias, memory, T, 1, N, PARTS)),
            (fill, (gated, w, rows, weights, ring, T, N, PARTS)),
            (fetch_residual, (z, leaving, arrived, free, T, N, PARTS)),
        ],
        [4, 1, 1], [REGISTERS[0], REGISTERS[1], REGISTERS[1]],
    )  # fmt: skip


def output_staying(z_TD: Tensor, gated_TG: Tensor, weight: Tensor, bias: Tensor, out: Tensor, launch: Staying) -> None:
    """Fill `out` (T, D), dtype of z."""
    (rows, inner), columns = gated_TG.shape, z_TD.shape[1]
    output_staying_kernel[(launch.programs(rows, z_TD.device),)](
        described(gated_TG, launch.depth), described(weight, launch.depth), described(z_TD, BLOCK),
        described(out, BLOCK), bias, rows, N=columns, CHUNKS=inner // launch.depth, **launch.constants(),
        REGISTERS=(MULTIPLYING, FILLING), **OPTIONS,
    )  # fmt: skip


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    depth, leaving = IN_OUTPUT.values()
    rows = type_of(depth, torch.bfloat16)
    tile = type_of(BLOCK, torch.bfloat16)
    types = {"gated": rows, "w": rows, "z": tile, "out": tile, "bias": "*fp32", "T": "i32"}
    for width in (256, 512):
        sizes = {"N": width, "CHUNKS": width // depth, "STAGES": stages_for(width, **IN_OUTPUT)}
        sizes |= {"LEAVING": leaving, "PARTS": 1}
        constants = {**sizes, "REGISTERS": (MULTIPLYING, FILLING)}
        found.append((f"output staying {width}", output_staying_kernel, types, constants, OPTIONS))
    return found
