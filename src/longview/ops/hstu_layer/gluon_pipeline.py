# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Products of a narrow layer on Hopper: one operand stays in shared memory, and warps have roles.

The projection (`gluon_project.py`) keeps a block of BM rows, all K columns of them, and goes over the columns of the
result, BN at a time: `fill` and `multiply`. The output product (`gluon_output.py`) keeps weights and goes over the
rows; it shares what is below these two. One warp fills shared memory; two warpgroups multiply in turns, so that one
finishes and stores its tile while the other keeps the tensor cores busy. Plain Triton reads the rows once more for
every tile and cannot give warps roles, hence Gluon, a part of Triton.

An `mbarrier` knows only whether its last phase was even or odd: whoever waits must know that the phase before has
passed. `turn` and `free` are that knowledge where an order of filling would not suffice.

Shapes: T rows, K = CHUNKS × BK columns of the rows, N columns of the result, in PARTS parts that are work of their own.
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from longview.ops.hstu_layer.tiling import BLOCK

NAMES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """Return COUNT barriers that wait for ARRIVALS each."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=ARRIVALS)
    return made


@gluon.jit
def fill(x, w, rows, weights, ring, T, N: gl.constexpr, PARTS: gl.constexpr):
    """Keep shared memory filled: a chunk of the rows as soon as all have used the last one, weights in a ring."""
    rows_full, rows_empty, full, empty = ring
    CHUNKS: gl.constexpr = rows.shape[0]
    BM: gl.constexpr = rows.shape[1]
    BK: gl.constexpr = rows.shape[2]
    STAGES: gl.constexpr = weights.shape[0]
    BN: gl.constexpr = weights.shape[1]
    ACROSS: gl.constexpr = N // BN // PARTS
    around, which = 0, 0
    for item in range(gl.program_id(0), gl.cdiv(T, BM) * PARTS, gl.num_programs(0)):
        m, first = item // PARTS * BM, item % PARTS * ACROSS
        for j in range(ACROSS):
            for k in range(CHUNKS):
                if j == 0:
                    mbarrier.wait(rows_empty.index(k), (which & 1) ^ 1)
                    mbarrier.expect(rows_full.index(k), x.block_type.nbytes)
                    tma.async_copy_global_to_shared(x, [m, k * BK], rows_full.index(k), rows.index(k))
                s = k % STAGES
                mbarrier.wait(empty.index(s), ((around + k // STAGES) & 1) ^ 1)
                mbarrier.expect(full.index(s), w.block_type.nbytes)
                tma.async_copy_global_to_shared(w, [(first + j) * BN, k * BK], full.index(s), weights.index(s))
            around += CHUNKS // STAGES
        which += 1


@gluon.jit
def multiply(rows, weights, ring, turn, tile, which, last, layout: gl.constexpr):
    """Return a tile (BM, BN) of rows @ weights.T once it is its turn.

    `tile` and `which` count the tiles and the items of this program. `last`: the caller will not use the rows again.
    """
    rows_full, rows_empty, full, empty = ring
    CHUNKS: gl.constexpr = rows.shape[0]
    STAGES: gl.constexpr = weights.shape[0]
    BM: gl.constexpr = rows.shape[1]
    BN: gl.constexpr = weights.shape[1]
    gl.static_assert(CHUNKS % STAGES == 0 and STAGES > 2)  # one is multiplied, one given back, one filled
    acc = gl.zeros((BM, BN), gl.float32, layout)
    mbarrier.wait(turn.index(0), (tile + 1) & 1)
    for k in range(CHUNKS):
        mbarrier.wait(rows_full.index(k), which & 1)
        mbarrier.wait(full.index(k % STAGES), (tile * (CHUNKS // STAGES) + k // STAGES) & 1)
        acc = warpgroup_mma(rows.index(k), weights.index(k % STAGES).permute((1, 0)), acc, use_acc=k > 0, is_async=True)
        acc = warpgroup_mma_wait(1, deps=(acc,))  # the product of the chunk before is done
        mbarrier.arrive(empty.index((k + STAGES - 1) % STAGES), count=1, pred=k > 0)
        mbarrier.arrive(rows_empty.index(gl.maximum(k - 1, 0)), count=1, pred=last & (k > 0))
    mbarrier.arrive(turn.index(0), count=1)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty.index(STAGES - 1), count=1)
    mbarrier.arrive(rows_empty.index(CHUNKS - 1), count=1, pred=last)
    return acc


@gluon.jit
def await_kernel_before():
    """Launched early, while the kernel before still runs, wait here until all it wrote can be seen."""
    gl.inline_asm_elementwise("griddepcontrol.wait; mov.b32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def leave(value, out, leaving, m, n):
    """Store a tile at (m, n) by way of `leaving`, which is free again afterwards."""
    leaving.store(value.to(out.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out, [m, n], leaving)
    tma.store_wait(0)


def layout_of(columns: int, dtype: torch.dtype, rows: int = BLOCK) -> gl.NVMMASharedLayout:
    """Return the layout in shared memory of a (rows, columns) tile."""
    return gl.NVMMASharedLayout.get_default_for([rows, columns], NAMES[dtype])


def described(x: Tensor, columns: int, rows: int = BLOCK) -> TensorDescriptor:
    """Return a descriptor of x by tiles of (rows, columns)."""
    return TensorDescriptor.from_tensor(x, [rows, columns], layout_of(columns, x.dtype, rows))


def type_of(columns: int, dtype: torch.dtype, rows: int = BLOCK) -> str:
    """Return the type of such a descriptor in a kernel's signature."""
    names: dict[Any, str] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return f"tensordesc<{names[dtype]}[{rows}, {columns}],{layout_of(columns, dtype, rows)!r}>"
