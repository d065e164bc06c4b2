# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, assignment"
"""The output product of narrow layers on Hopper, with bias and residual: results of `triton_output.output_kernel`.

What goes through the L2 cache limits this product, so a program keeps as many rows of the weights as it can, 256 with
all their K columns, and goes over the tokens, 64 at a time: every token is read N / 256 times. Shared memory has room
for half of these weights beside the tokens. The other half stays in registers, from where the tensor cores take a left
operand as well; hence the product is out^T = weights tokens^T, and a tile is transposed on its way into shared memory.

Two warpgroups have 128 of the 256 rows each and multiply in turns, so that one finishes and stores its part of a tile
while the other keeps the tensor cores busy. One warp fills a ring with tokens, one fetches each tile's residual into
the place the tile will leave from. Programs next to each other have the same tokens at about the same time, so that
memory is read once.

Barriers know only parity: `full` begins a phase only after `empty` ended the one before, and `there` has but one.
Nobody waits for a later tile than its own, so programs with no, one or many tiles all end.

Shapes: T tokens, K = CHUNKS × PART columns of theirs, N columns of the result; tiles of PART tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from longview.ops.hstu_layer.gluon_pipeline import await_kernel_before, barriers, described, type_of
from longview.ops.hstu_layer.tiling import PART, processors, ring_of

MULTIPLYING, FILLING = 240, 24  # registers of a thread, see gluon_project.py; of 240, at K = 512, 128 are weights
OPTIONS = {"num_warps": 4, "maxnreg": 168, "launch_pdl": True}


@gluon.jit
def walk_of(T, PART: gl.constexpr, COLUMNS: gl.constexpr):
    """Return the first block of tokens of this program, the end, and the step to its next one."""
    return gl.program_id(0) // COLUMNS, gl.cdiv(T, PART), gl.num_programs(0) // COLUMNS


@gluon.jit
def fill(gated, w, tokens, weights, ring, T, COLUMNS: gl.constexpr, AFTER_GATE: gl.constexpr):
    """Fetch the weights once, those for registers by way of the ring, and then every tile's tokens."""
    there, full, empty = ring
    STAGES: gl.constexpr = tokens.shape[0]
    PART: gl.constexpr = tokens.shape[1]
    CHUNKS: gl.constexpr = weights.shape[0] // 2
    n = gl.program_id(0) % COLUMNS * (4 * PART)
    at = 0
    for group in gl.static_range(2):
        for k in range(CHUNKS):
            stage = full.index(at % STAGES)
            mbarrier.wait(empty.index(at % STAGES), ((at // STAGES) & 1) ^ 1)
            mbarrier.expect(stage, w.block_type.nbytes)
            tma.async_copy_global_to_shared(w, [n + 2 * group * PART, k * PART], stage, tokens.index(at % STAGES))
            at += 1
    for group in gl.static_range(2):
        here = there.index(group)
        mbarrier.expect(here, CHUNKS * w.block_type.nbytes)
        for k in range(CHUNKS):
            place = weights.index(group * CHUNKS + k)
            tma.async_copy_global_to_shared(w, [n + (2 * group + 1) * PART, k * PART], here, place)
    if AFTER_GATE:
        await_kernel_before()
    first, end, step = walk_of(T, PART, COLUMNS)
    for block in range(first, end, step):
        for k in range(CHUNKS):
            stage = full.index(at % STAGES)
            mbarrier.wait(empty.index(at % STAGES), ((at // STAGES) & 1) ^ 1)
            mbarrier.expect(stage, gated.block_type.nbytes)
            tma.async_copy_global_to_shared(gated, [block * PART, k * PART], stage, tokens.index(at % STAGES))
            at += 1


@gluon.jit
def fetch_residual(z, leaving, arrived, free, T, COLUMNS: gl.constexpr):
    """Fetch every tile's residual as soon as the same group's part of the tile before has left."""
    PART: gl.constexpr = leaving.shape[1]
    n = gl.program_id(0) % COLUMNS * (4 * PART)
    tile = 0
    first, end, step = walk_of(T, PART, COLUMNS)
    for block in range(first, end, step):
        for group in gl.static_range(2):
            here = arrived.index(group)
            mbarrier.wait(free.index(group), (tile + 1) & 1)
            mbarrier.expect(here, 2 * z.block_type.nbytes)
            for part in gl.static_range(2 * group, 2 * group + 2):
                tma.async_copy_global_to_shared(z, [block * PART, n + part * PART], here, leaving.index(part))
        tile += 1


@gluon.jit
def held_weights(tokens, ring, GROUP: gl.constexpr, CHUNKS: gl.constexpr, layout: gl.constexpr):
    """Return this group's weights for registers, chunk by chunk; those of both groups pass in the ring."""
    there, full, empty = ring
    STAGES: gl.constexpr = tokens.shape[0]
    held = ()
    for at in gl.static_range(2 * CHUNKS):
        mbarrier.wait(full.index(at % STAGES), (at // STAGES) & 1)
        if at // CHUNKS == GROUP:
            held += (tokens.index(at % STAGES).load(layout),)
        mbarrier.arrive(empty.index(at % STAGES), count=1)
    return held


@gluon.jit
def untold(value):
    """Return `value`, which the compiler does not learn: else it keeps every address made of it in a register."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [value], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def multiply(held, weights, tokens, ring, turn, tile, GROUP: gl.constexpr, layout: gl.constexpr):
    """Return this group's part of a tile (2 of PART × PART), transposed, once it is its turn."""
    there, full, empty = ring
    PART: gl.constexpr = tokens.shape[1]
    CHUNKS: gl.constexpr = weights.shape[0] // 2
    AT_ONCE: gl.constexpr = tokens.shape[0] // CHUNKS  # tiles in the ring; weights were two
    stage, phase = (tile + 2) % AT_ONCE * CHUNKS + untold(0), ((tile + 2) // AT_ONCE) & 1
    one, two = gl.zeros((PART, PART), gl.float32, layout), gl.zeros((PART, PART), gl.float32, layout)
    mbarrier.wait(turn.index(0), (2 * tile + GROUP + 1) & 1)
    for k in gl.static_range(CHUNKS):
        mbarrier.wait(full.index(stage + k), phase)
        right = tokens.index(stage + k).permute((1, 0))
        one = warpgroup_mma(held[k], right, one, use_acc=k > 0, is_async=True)
        two = warpgroup_mma(weights.index(GROUP * CHUNKS + k), right, two, use_acc=k > 0, is_async=True)
        if k > 0:
            one, two = warpgroup_mma_wait(2, deps=(one, two))  # the products of the chunk before are done
            mbarrier.arrive(empty.index(stage + k - 1), count=1)
    mbarrier.arrive(turn.index(0), count=1)
    one, two = warpgroup_mma_wait(0, deps=(one, two))
    mbarrier.arrive(empty.index(stage + CHUNKS - 1), count=1)
    return one, two


@gluon.jit
def finish(acc, shift, leaving, layout: gl.constexpr):
    """Put a part of the result, with bias and residual, where its residual is."""
    place = leaving.permute((1, 0))
    place.store((acc + gl.expand_dims(shift, 1) + place.load(layout).to(gl.float32)).to(leaving.dtype))


@gluon.jit
def output_tiles(out, bias, memory, T, GROUP: gl.constexpr, COLUMNS: gl.constexpr):
    """A group's 128 columns of every tile of this program: product, bias and residual."""
    tokens, weights, leaving, ring, turn, free, arrived = memory
    there, full, empty = ring
    PART: gl.constexpr = tokens.shape[1]
    CHUNKS: gl.constexpr = weights.shape[0] // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    held = held_weights(tokens, ring, GROUP, CHUNKS, gl.DotOperandLayout(0, layout, 2))
    n = gl.program_id(0) % COLUMNS * (4 * PART) + 2 * GROUP * PART
    column = n + gl.arange(0, PART, gl.SliceLayout(1, layout))
    shift_one, shift_two = gl.load(bias + column).to(gl.float32), gl.load(bias + column + PART).to(gl.float32)
    mbarrier.wait(there.index(GROUP), 0)
    tile = 0
    first, end, step = walk_of(T, PART, COLUMNS)
    for block in range(first, end, step):
        one, two = multiply(held, weights, tokens, ring, turn, tile, GROUP, layout)
        mbarrier.wait(arrived.index(GROUP), tile & 1)
        finish(one, shift_one, leaving.index(2 * GROUP), layout)
        finish(two, shift_two, leaving.index(2 * GROUP + 1), layout)
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [block * PART, n], leaving.index(2 * GROUP))
        tma.async_copy_shared_to_global(out, [block * PART, n + PART], leaving.index(2 * GROUP + 1))
        tma.store_wait(0)
        mbarrier.arrive(free.index(GROUP), count=1)
        tile += 1


@gluon.jit(do_not_specialize=["T"])
def output_held_kernel(
    gated, w, z, out, bias, T, COLUMNS: gl.constexpr, CHUNKS: gl.constexpr, STAGES: gl.constexpr,
    AFTER_GATE: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """z + gated @ w.T + bias; gated, w, z and out are tensor descriptors. REGISTERS: to multiply and to fill.

    COLUMNS: blocks of 256 columns of the result, of which a program has one; the number of programs is a multiple.
    AFTER_GATE: the kernel before writes nothing that is read here but `gated`, so that weights need not wait for it.
    """
    PART: gl.constexpr = gated.block_type.shape[0]
    tokens = gl.allocate_shared_memory(gated.dtype, [STAGES, PART, PART], gated.layout)
    weights = gl.allocate_shared_memory(w.dtype, [2 * CHUNKS, PART, PART], w.layout)
    leaving = gl.allocate_shared_memory(out.dtype, [4, PART, PART], out.layout)
    ring = (barriers(2, 1), barriers(STAGES, 1), barriers(STAGES, 2))
    turn, free, arrived = barriers(1, 1), barriers(2, 1), barriers(2, 1)
    fence_async_shared()
    if not AFTER_GATE:
        await_kernel_before()
    memory = (tokens, weights, leaving, ring, turn, free, arrived)
    gl.warp_specialize(
        [
            (output_tiles, (out, bias, memory, T, 0, COLUMNS)),
            (output_tiles, (out, bias, memory, T, 1, COLUMNS)),
            (fill, (gated, w, tokens, weights, ring, T, COLUMNS, AFTER_GATE)),
            (fetch_residual, (z, leaving, arrived, free, T, COLUMNS)),
        ],
        [4, 1, 1], [REGISTERS[0], REGISTERS[1], REGISTERS[1]],
    )  # fmt: skip


def output_held(
    z_TD: Tensor, gated_TG: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, after_gate: bool = False
) -> None:
    """Fill `out` (T, D), dtype of z; `after_gate`: the last thing launched before wrote `gated_TG` and nothing else."""
    (tokens, inner), columns = gated_TG.shape, z_TD.shape[1] // (4 * PART)
    programs = max(1, min(-(-tokens // PART), processors(z_TD.device) // columns)) * columns
    output_held_kernel[(programs,)](
        *(described(x, PART, PART) for x in (gated_TG, weight, z_TD, out)), bias, tokens, COLUMNS=columns,
        CHUNKS=inner // PART, STAGES=ring_of(inner), AFTER_GATE=after_gate, REGISTERS=(MULTIPLYING, FILLING), **OPTIONS,
    )  # fmt: skip


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    tile = type_of(PART, torch.bfloat16, PART)
    types = {**dict.fromkeys(("gated", "w", "z", "out"), tile), "bias": "*fp32", "T": "i32"}
    for width in (256, 384, 512):
        sizes = {"COLUMNS": max(1, width // (4 * PART)), "CHUNKS": width // PART, "STAGES": ring_of(width)}
        for after_gate in (False, True):
            constants = {**sizes, "AFTER_GATE": after_gate, "REGISTERS": (MULTIPLYING, FILLING)}
            name = f"output held {width}{', after the gate' if after_gate else ''}"
            found.append((name, output_held_kernel, types, constants, OPTIONS))
    return found
