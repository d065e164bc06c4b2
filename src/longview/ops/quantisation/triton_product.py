# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The FP8 product: E4M3 operands, float32 sums, and scales, bias, residual and SiLU in its epilogue.

Both operands are stored along the inner dimension, as the tensor cores want 8-bit ones, and travel by the copy engine.
Hopper keeps about 14 bits of a sum while it adds 8-bit products; with IMPRECISE below the inner dimension the sum moves
to full float32 registers that often, which costs more than it gives at the widths of a layer
(`relative_error` of `longview bench quantisation`).

This is the portable form, for devices and shapes that `triton_hopper.py` does not serve. The residual is asked into
the L2 cache before the sums begin (RESIDUAL "l2") and read after them.

Shapes: T rows, K inner, N columns; tiles BM × BN, BK of K at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longview.ops.hstu_layer.tiling import Tiling
from longview.ops.hstu_layer.triton_numerics import halves_of, silu, tile_of

Fetch = Literal["late", "l2"]


@triton.jit
def prefetch_l2(pointers):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["T"])
def product_kernel(
    x, w, z, out, pre, z_first, x_scale, w_scale, bias, T,
    N: tl.constexpr, K: tl.constexpr, ACTIVATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    SAVE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    FLATTEN: tl.constexpr, PARTS: tl.constexpr, TANH: tl.constexpr, IMPRECISE: tl.constexpr,
):  # fmt: skip
    """Tiles of SiLU(x_scale * w_scale * (x @ w.T) + bias) + z, SiLU where the column is below ACTIVATED.

    x, w, z, out and pre are tensor descriptors; `z_first` points at z. RESIDUAL is "none" where there is no z. With
    SAVE also what SiLU sees (`pre` ends where activation does).
    """
    blocks_m, blocks_n = tl.cdiv(T, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        column = n + tl.arange(0, BN)
        row = tl.minimum(m + tl.arange(0, BM), T - 1)  # rows past the last don't leave; no mask is kept for them
        if RESIDUAL == "l2":
            line = n + 64 * tl.arange(0, BN // 64)
            prefetch_l2(z_first + row.to(tl.int64)[:, None] * N + tl.minimum(line, N - 1)[None, :])
        scale = tl.load(x_scale + row)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, K, BK):
            acc = tl.dot(x.load([m, k]), w.load([n, k]).T, acc, max_num_imprecise_acc=IMPRECISE)
        acc *= scale[:, None]
        acc *= tl.load(w_scale + column, mask=column < N, other=0.0)[None, :]
        if BIAS:
            acc += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if PARTS == 1:
            _leave(acc, z, out, pre, m, n, N, ACTIVATED, RESIDUAL, SAVE, BN, TANH)
        else:
            left, right = halves_of(acc, BM, BN)
            if PARTS == 2:
                _leave(left, z, out, pre, m, n, N, ACTIVATED, RESIDUAL, SAVE, BN // 2, TANH)
                _leave(right, z, out, pre, m, n + BN // 2, N, ACTIVATED, RESIDUAL, SAVE, BN // 2, TANH)
            else:
                first, second = halves_of(left, BM, BN // 2)
                _leave(first, z, out, pre, m, n, N, ACTIVATED, RESIDUAL, SAVE, BN // 4, TANH)
                _leave(second, z, out, pre, m, n + BN // 4, N, ACTIVATED, RESIDUAL, SAVE, BN // 4, TANH)
                first, second = halves_of(right, BM, BN // 2)
                _leave(first, z, out, pre, m, n + BN // 2, N, ACTIVATED, RESIDUAL, SAVE, BN // 4, TANH)
                _leave(second, z, out, pre, m, n + 3 * (BN // 4), N, ACTIVATED, RESIDUAL, SAVE, BN // 4, TANH)


@triton.jit
def _leave(
    x, z, out, pre, m, n, N: tl.constexpr, ACTIVATED: tl.constexpr, RESIDUAL: tl.constexpr, SAVE: tl.constexpr,
    WIDE: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """Store a part of the result at (m, n), after SiLU and with the residual where there are any."""
    if SAVE:
        pre.store([m, n], x.to(pre.dtype))
    if ACTIVATED == N:
        x = silu(x, TANH)
    elif ACTIVATED > 0:
        chosen = (n + tl.arange(0, WIDE)) < ACTIVATED
        x = tl.where(chosen[None, :], silu(x, TANH), x)
    if RESIDUAL != "none":
        x += z.load([m, n]).to(tl.float32)
    out.store([m, n], x.to(out.dtype))


@dataclass(frozen=True)
class Plan:
    """How a product is cut up, and how it gets its residual."""

    tiling: Tiling
    fetch: Fetch = "l2"
    exact: bool = False  # sums move to full float32 registers after every `tiling.depth` products


def product(
    x_TK: Tensor,
    x_scale_T: Tensor,
    w_NK: Tensor,
    w_scale_N: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activated: int,
    out_dtype: torch.dtype,
    plan: Plan | None = None,
    pre: Tensor | None = None,
) -> Tensor:
    """Return SiLU(scales * (x w^T) + bias) + residual (T, N), SiLU in the first `activated` columns; T at least 1.

    `pre` (T, activated), if given, is filled with what SiLU saw.
    """
    (rows, inner), columns = x_TK.shape, len(w_NK)
    plan = plan or default_plan(columns, inner, residual is not None, out_dtype, x_TK.device.type == "cuda")
    tiling = plan.tiling
    out = torch.empty(rows, columns, dtype=out_dtype, device=x_TK.device)
    constants: dict[str, Any] = {"N": columns, "K": inner, "ACTIVATED": activated, "BIAS": bias is not None}
    constants |= {"RESIDUAL": "none" if residual is None else plan.fetch, "SAVE": pre is not None}
    constants |= {
        "TANH": x_TK.is_cuda and out_dtype != torch.float32,
        "IMPRECISE": tiling.depth if plan.exact else None,
    }
    product_kernel[(tiling.programs(rows, columns, x_TK.device),)](
        TensorDescriptor.from_tensor(x_TK, [tiling.rows, tiling.depth]),
        TensorDescriptor.from_tensor(w_NK, [tiling.columns, tiling.depth]),
        None if residual is None else TensorDescriptor.from_tensor(residual, tiling.leaving()),
        TensorDescriptor.from_tensor(out, tiling.leaving()),
        None if pre is None else TensorDescriptor.from_tensor(pre, tiling.leaving()),
        residual, x_scale_T, w_scale_N, bias, rows, **constants, **tiling.constants(), **tiling.launch(),
    )  # fmt: skip
    return out


def default_plan(columns: int, inner: int, residual: bool, stream: torch.dtype, gpu: bool = True) -> Plan:
    """Return how to cut a product; `stream` is the dtype of residual and result."""
    if not gpu:
        return Plan(Tiling(32, 32, 32, 4, 2, group=2), "late")
    return Plan(Tiling(128, 128, 64, 4, 4 if stream != torch.float32 else 3, resident=2, flatten=True, parts=2))


def signature(
    plan: Plan, stream: str = "bf16", residual: bool = True, bias: bool = True, save: bool = False
) -> dict[str, str]:
    """Return the types of the kernel's arguments."""
    tiling = plan.tiling
    leaving = "tensordesc<{}[{},{}]>".format(stream, *tiling.leaving())
    types = {
        "x": f"tensordesc<fp8e4nv[{tiling.rows},{tiling.depth}]>",
        "w": f"tensordesc<fp8e4nv[{tiling.columns},{tiling.depth}]>",
        "out": leaving,
        "x_scale": "*fp32",
        "w_scale": "*fp32",
        "T": "i32",
    }
    types |= {"z": leaving, "z_first": f"*{stream}"} if residual else {}
    types |= {"pre": leaving} if save else {}
    return types | ({"bias": "*fp32"} if bias else {})


def constants_of(
    plan: Plan, columns: int, inner: int, activated: int, *, residual: bool, bias: bool, save: bool = False
) -> dict[str, Any]:
    """Return the compile-time arguments of a launch on a GPU."""
    found = {**plan.tiling.constants(), "N": columns, "K": inner, "ACTIVATED": activated, "BIAS": bias}
    found |= {"RESIDUAL": plan.fetch if residual else "none", "TANH": True}
    found |= {"IMPRECISE": plan.tiling.depth if plan.exact else None}
    found |= {"SAVE": save} | ({} if save else {"pre": None})
    found |= {} if residual else {"z": None, "z_first": None}
    return found | ({} if bias else {"bias": None})


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    for stream, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for columns, residual, save in ((512, True, False), (2048, False, False), (2048, False, True)):
            plan, activated = default_plan(columns, 512, residual, dtype), 0 if residual else columns
            constants = constants_of(plan, columns, 512, activated, residual=residual, bias=True, save=save)
            name = f"{'output' if residual else 'project'} 512 {stream}{' save' if save else ''}"
            types = signature(plan, stream, residual, save=save)
            found.append((name, product_kernel, types, constants, plan.tiling.launch()))
    return found
