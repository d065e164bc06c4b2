# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The FP8 product on Hopper: one warp fetches, two groups of four warps multiply, and none waits for the others' ends.

What a wide layer's product costs is half tensor cores, half memory: residual and result are four times the bytes of the
8-bit operand. So the fetching warp brings the residual in while the sums are still growing, and the two groups, each
with its half of a tile's rows, drift apart by what the ring of operand tiles allows: one stores while the other
multiplies. Residual and result share a place in shared memory. Written in Gluon, Triton's language of explicit
pipelines (`triton_product.py` has the same product for other devices and shapes).

A tile's residual is asked for in step STAGES: by then both groups have freed the ring's place of step 0 of this very
tile and therefore are through with the tile before, its store included.
Shapes: T rows, K inner, N columns; tiles BM × BN, BK of K at a time, each group BM / 2 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
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

from longview.ops.hstu_layer.tiling import processors

GROUP_REGISTERS, FETCH_REGISTERS = 240, 24  # of a thread that multiplies (128 × 128 sums take 128) and that fetches


@gluon.jit
def tile_of(number, blocks_m, blocks_n, GROUP: gl.constexpr):
    """Return the (row, column) of a tile: down `GROUP` row blocks first, then on to the next column block."""
    per_group = GROUP * blocks_n
    first = (number // per_group) * GROUP
    tall = gl.minimum(blocks_m - first, GROUP)
    inside = number % per_group
    return first + inside % tall, inside // tall


@gluon.jit
def fetch(
    x, w, z, xs, ws, zs, full, empty, arrived, T, N: gl.constexpr, K: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, RESIDUAL: gl.constexpr,
):  # fmt: skip
    """Fill the ring, tile after tile, and the residual of each."""
    HALF: gl.constexpr = BM // 2
    STEPS: gl.constexpr = (K + BK - 1) // BK
    blocks_m, blocks_n = gl.cdiv(T, BM), gl.cdiv(N, BN)
    step = 0
    for number in range(gl.program_id(0), blocks_m * blocks_n, gl.num_programs(0)):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        for k in range(STEPS):
            stage = step % STAGES
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            ready = full.index(stage)
            mbarrier.expect(ready, (BM + BN) * BK)
            tma.async_copy_global_to_shared(x, [m, k * BK], ready, xs.index(2 * stage))
            tma.async_copy_global_to_shared(x, [m + HALF, k * BK], ready, xs.index(2 * stage + 1))
            tma.async_copy_global_to_shared(w, [n, k * BK], ready, ws.index(stage))
            if RESIDUAL:
                if k == STAGES:
                    for half in gl.static_range(2):
                        mbarrier.expect(arrived.index(half), z.block_type.nbytes)
                        tma.async_copy_global_to_shared(z, [m + HALF * half, n], arrived.index(half), zs.index(half))
            step += 1


@gluon.jit
def multiply(
    SIDE: gl.constexpr, out, pre, x_scale, w_scale, bias, xs, ws, zs, full, empty, arrived, T, N: gl.constexpr,
    K: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    ACTIVATED: gl.constexpr, BIAS: gl.constexpr, RESIDUAL: gl.constexpr, TANH: gl.constexpr, SAVE: gl.constexpr,
):  # fmt: skip
    """Rows SIDE * BM / 2 and on of each tile: sums, epilogue, and the result on its way out."""
    HALF: gl.constexpr = BM // 2
    STEPS: gl.constexpr = (K + BK - 1) // BK
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 32])
    blocks_m, blocks_n = gl.cdiv(T, BM), gl.cdiv(N, BN)
    place = zs.index(SIDE)
    step = 0
    tile = 0
    for number in range(gl.program_id(0), blocks_m * blocks_n, gl.num_programs(0)):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM + SIDE * HALF, block_n * BN
        row = m + gl.arange(0, HALF, gl.SliceLayout(1, sums))
        scale = gl.load(x_scale + row, mask=row < T, other=0.0)
        half: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN // 2, 32])
        column = n + gl.arange(0, BN // 2, gl.SliceLayout(0, half))
        scale_left, bias_left = of_columns(w_scale, bias, column, N, BIAS)
        scale_right, bias_right = of_columns(w_scale, bias, column + BN // 2, N, BIAS)
        acc = gl.zeros((HALF, BN), gl.float32, sums)
        for k in range(STEPS):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), (step // STAGES) & 1)
            right = ws.index(stage).permute((1, 0))
            acc = warpgroup_mma(xs.index(2 * stage + SIDE), right, acc, use_acc=k > 0, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(acc,))
            if k == 1:
                tma.store_wait(0)  # of the tile before: `place` is free when this tile's first step is
            if k > 0:
                mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
            step += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index((step - 1) % STAGES), count=1)
        if RESIDUAL:
            mbarrier.wait(arrived.index(SIDE), tile & 1)
        left, right = acc.reshape((HALF, 2, BN // 2)).permute((0, 2, 1)).split()
        where_left, where_right = place.slice(0, BN // 2, dim=1), place.slice(BN // 2, BN // 2, dim=1)
        left, right = scaled(left, scale, scale_left, bias_left), scaled(right, scale, scale_right, bias_right)
        if SAVE:
            where_left.store(left.to(place.dtype))
            where_right.store(right.to(place.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(pre, [m, n], place)
            tma.store_wait(0)
            gl.thread_barrier()
        leave(left, n, where_left, N, ACTIVATED, RESIDUAL, TANH)
        leave(right, n + BN // 2, where_right, N, ACTIVATED, RESIDUAL, TANH)
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [m, n], place)
        tile += 1  # noqa: SIM113
    tma.store_wait(0)


@gluon.jit
def of_columns(w_scale, bias, column, N: gl.constexpr, BIAS: gl.constexpr):
    """Return the scales and the bias of some columns; asked for before the sums, they are there when those are."""
    scale = gl.load(w_scale + column, mask=column < N, other=0.0)
    if BIAS:
        shift = gl.load(bias + column, mask=column < N, other=0.0).to(gl.float32)
    else:
        shift = gl.zeros_like(scale)
    return scale, shift


@gluon.jit
def scaled(x, row_scale, scale, shift):
    """Return half the columns of a group's sums with scales and bias."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, x.shape[1], 32])
    x = gl.convert_layout(x, layout) * gl.convert_layout(row_scale, gl.SliceLayout(1, layout))[:, None]
    return x * scale[None, :] + shift[None, :]


@gluon.jit
def leave(x, n, place, N: gl.constexpr, ACTIVATED: gl.constexpr, RESIDUAL: gl.constexpr, TANH: gl.constexpr):
    """Finish half the columns of a tile, and put them where their residual was."""
    WIDE: gl.constexpr = x.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    if ACTIVATED == N:
        x = silu(x, TANH)
    elif ACTIVATED > 0:
        column = n + gl.arange(0, WIDE, gl.SliceLayout(0, layout))
        x = gl.where((column < ACTIVATED)[None, :], silu(x, TANH), x)
    if RESIDUAL:
        x = x + place.load(layout).to(gl.float32)
    place.store(x.to(place.dtype))


@gluon.jit
def silu(x, TANH: gl.constexpr):
    if TANH:
        half = 0.5 * x
        tanh = gl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=gl.float32, is_pure=True, pack=1
        )
        x = half * tanh + half
    else:
        x = x / (1.0 + gl.exp(-x))
    return x


@gluon.jit(do_not_specialize=["T"])
def hopper_kernel(
    x, w, z, out, pre, x_scale, w_scale, bias, T, N: gl.constexpr, K: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, ACTIVATED: gl.constexpr, BIAS: gl.constexpr,
    RESIDUAL: gl.constexpr, TANH: gl.constexpr, SAVE: gl.constexpr, REGISTERS: gl.constexpr, FETCH: gl.constexpr,
):  # fmt: skip
    """Tiles of SiLU(x_scale * w_scale * (x @ w.T) + bias) + z; with SAVE also what SiLU sees, which ends where it does.

    x, w, z, out and pre are tensor descriptors.
    """
    xs = gl.allocate_shared_memory(x.dtype, [2 * STAGES, BM // 2, BK], x.layout)
    ws = gl.allocate_shared_memory(w.dtype, [STAGES, BN, BK], w.layout)
    zs = gl.allocate_shared_memory(out.dtype, [2, BM // 2, BN], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    arrived = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(arrived.index(i), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply, (0, out, pre, x_scale, w_scale, bias, xs, ws, zs, full, empty, arrived, T, N, K, BM, BN, BK,
                        STAGES, GROUP, ACTIVATED, BIAS, RESIDUAL, TANH, SAVE)),
            (multiply, (1, out, pre, x_scale, w_scale, bias, xs, ws, zs, full, empty, arrived, T, N, K, BM, BN, BK,
                        STAGES, GROUP, ACTIVATED, BIAS, RESIDUAL, TANH, SAVE)),
            (fetch, (x, w, z, xs, ws, zs, full, empty, arrived, T, N, K, BM, BN, BK, STAGES, GROUP, RESIDUAL)),
        ],
        [4, 1],
        [REGISTERS, FETCH],
    )  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """How a product is cut up."""

    rows: int
    columns: int
    depth: int
    stages: int
    group: int = 1  # row blocks that share a column block of the weights before it moves on


def product(
    x_TK: Tensor,
    x_scale_T: Tensor,
    w_NK: Tensor,
    w_scale_N: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activated: int,
    out_dtype: torch.dtype,
    pipeline: Pipeline | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """Return SiLU(scales * (x w^T) + bias) + residual (T, N), SiLU in the first `activated` columns; T at least 1.

    `pre` (T, activated), if given, is filled with what SiLU saw; then there is no residual.
    """
    (rows, inner), columns = x_TK.shape, len(w_NK)
    p = pipeline or default_pipeline(columns, inner, residual is not None, out_dtype)
    out = torch.empty(rows, columns, dtype=out_dtype, device=x_TK.device)
    tiles = -(-rows // p.rows) * -(-columns // p.columns)
    hopper_kernel[(min(tiles, processors(x_TK.device)),)](
        *(_descriptor(*part) for part in _parts(p, x_TK, w_NK, out if residual is None else residual, out)),
        None if pre is None else _descriptor(pre, [p.rows // 2, p.columns]), x_scale_T, w_scale_N, bias, rows,
        num_warps=4, **constants_of(p, columns, inner, activated, residual=residual is not None,
                                    bias=bias is not None, save=pre is not None, stream=out_dtype),
    )  # fmt: skip
    return out


def default_pipeline(columns: int, inner: int, residual: bool, stream: torch.dtype) -> Pipeline:
    """Return how to cut a product; `stream` is the dtype of residual and result."""
    if stream == torch.float32:
        return Pipeline(128, 128, 128, 4)
    if inner <= 640:
        return Pipeline(256, 128, 128, 3, group=2)
    if residual or inner > 1024:
        return Pipeline(128, 128, 128, 5, group=4)
    return Pipeline(256, 128, 128, 3)


def why_not_shape(columns: int, inner: int, residual: bool, stream: torch.dtype) -> str | None:
    """Return why the pipeline cannot make a product of this shape, in a sentence, or None."""
    p = default_pipeline(columns, inner, residual, stream)
    if inner <= p.stages * p.depth:
        return f"an inner width of {inner} does not fill the pipeline's ring of {p.stages * p.depth}"
    return None


def constants_of(
    p: Pipeline,
    columns: int,
    inner: int,
    activated: int,
    *,
    residual: bool,
    bias: bool,
    save: bool,
    stream: torch.dtype,
) -> dict[str, Any]:
    """Return the compile-time arguments."""
    cut = {"BM": p.rows, "BN": p.columns, "BK": p.depth, "STAGES": p.stages, "GROUP": p.group}
    cut |= {"N": columns, "K": inner, "ACTIVATED": activated, "BIAS": bias, "RESIDUAL": residual}
    cut |= {"SAVE": save}
    return cut | {"TANH": stream != torch.float32, "REGISTERS": GROUP_REGISTERS, "FETCH": FETCH_REGISTERS}


def _parts(p: Pipeline, *tensors: Tensor) -> list[tuple[Tensor, list[int]]]:
    boxes = [[p.rows // 2, p.depth], [p.columns, p.depth], *[[p.rows // 2, p.columns]] * 2]
    return list(zip(tensors, boxes, strict=True))


def layout_of(box: list[int], bits: int) -> Any:
    """Return the layout in shared memory of a box of numbers of `bits` bits."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, box[1] * bits // 8), element_bitwidth=bits, rank=2)


def _descriptor(x: Tensor, box: list[int]) -> Any:
    return TensorDescriptor.from_tensor(x, box, layout_of(box, 8 * x.element_size()))


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    for stream, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        outputs = [(inner, inner, False) for inner in (512, 1024)]
        projections = [(inner, 4 * inner, save) for inner in (1024, 2048) for save in (False, True)]
        for inner, columns, save in outputs + projections:
            residual = columns == inner
            p, activated = default_pipeline(columns, inner, residual, dtype), 0 if residual else columns
            name = f"{'output' if residual else 'project'} {inner} {stream}{' save' if save else ''}"
            constants = constants_of(
                p, columns, inner, activated, residual=residual, bias=True, save=save, stream=dtype
            ) | ({} if save else {"pre": None})
            found.append((name, hopper_kernel, signature(p, stream, save), constants, {"num_warps": 4}))
    return found


def signature(p: Pipeline, stream: str = "bf16", save: bool = False) -> dict[str, str]:
    """Return the types of the kernel's arguments."""
    types = dict.fromkeys(("x_scale", "w_scale", "bias"), "*fp32") | {"T": "i32"}
    leaving = [p.rows // 2, p.columns]
    boxes = {"x": [p.rows // 2, p.depth], "w": [p.columns, p.depth], "z": leaving, "out": leaving}
    boxes |= {"pre": leaving} if save else {}
    for name, box in boxes.items():
        kind, bits = ("fp8e4nv", 8) if name in "xw" else (stream, 32 if stream == "fp32" else 16)
        types[name] = f"tensordesc<{kind}[{box[0]},{box[1]}],{layout_of(box, bits)!r}>"
    return types
