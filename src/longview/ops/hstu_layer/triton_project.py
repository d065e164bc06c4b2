# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""LayerNorm, the U·V·Q·K product, its bias and SiLU: a pass for the statistics, then one kernel.

With W' = W * gamma and b' = b + W beta the projection of a normalised row is W' (z - mean) * rstd + b'. Where z has
the dtype of the product, the main loop multiplies z as it is, and the epilogue computes rstd * (sum - mean *
rowsum(W')) + b': z is never rounded a second time, and float32 sums keep the subtraction exact to about
|mean| / std * 1e-6. A float32 z under a 16-bit product would lose what the subtraction needs; then the pass for the
statistics writes normalised rows, and the product reads those. For narrow layers on Hopper, `gluon_project.py` has
pass and product in one.

Shapes: T rows, K width, N = columns of U, V, Q and K; tiles BM × BN, BK of K at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longview.ops.hstu_layer.tiling import IN_PROJECTION, Tiling, roomy, staying
from longview.ops.hstu_layer.triton_norm import Statistics, normalise
from longview.ops.hstu_layer.triton_numerics import halves_of, silu, tile_of

FOLD_COLUMNS = 1024


@triton.jit
def fold_kernel(weight, bias, gamma, beta, folded, row_sum, shift, K, BLOCK: tl.constexpr):
    """One row of W' = weight * gamma in the dtype of the product, the sum of that rounded row, and b'."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    moved = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        at = start + column
        live = at < K
        w = tl.load(weight + row * K + at, mask=live, other=0.0).to(tl.float32)
        scaled = (w * tl.load(gamma + at, mask=live, other=0.0).to(tl.float32)).to(folded.dtype.element_ty)
        tl.store(folded + row * K + at, scaled, mask=live)
        total += scaled.to(tl.float32)
        moved += w * tl.load(beta + at, mask=live, other=0.0).to(tl.float32)
    tl.store(row_sum + row, tl.sum(total, 0))
    tl.store(shift + row, tl.sum(moved, 0) + tl.load(bias + row).to(tl.float32))


@triton.jit(do_not_specialize=["T"])
def project_kernel(
    x, w, out, pre, mean, rstd, row_sum, shift, T,
    N: tl.constexpr, K: tl.constexpr, ACTIVATED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    FLATTEN: tl.constexpr, PARTS: tl.constexpr, NORMED: tl.constexpr, TANH: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Tiles of SiLU(norm(x) @ w.T + shift), x being normalised already where NORMED.

    x, w, out and pre are tensor descriptors.
    """
    blocks_m, blocks_n = tl.cdiv(T, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, K, BK):
            acc = tl.dot(x.load([m, k]), w.load([n, k]).T, acc, input_precision="ieee")
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        if not NORMED:  # loaded here and not before the loop, which needs the registers
            mu = tl.load(mean + row, mask=row < T, other=0.0)
            scale = tl.load(rstd + row, mask=row < T, other=0.0)
            sums = tl.load(row_sum + column, mask=column < N, other=0.0)
            acc = scale[:, None] * (acc - mu[:, None] * sums[None, :])
        acc += tl.load(shift + column, mask=column < N, other=0.0)[None, :]
        if PARTS == 1:
            _leave(acc, out, pre, m, n, N, ACTIVATED, BN, TANH, SAVE)
        else:
            left, right = halves_of(acc, BM, BN)
            if PARTS == 2:
                _leave(left, out, pre, m, n, N, ACTIVATED, BN // 2, TANH, SAVE)
                _leave(right, out, pre, m, n + BN // 2, N, ACTIVATED, BN // 2, TANH, SAVE)
            else:
                first, second = halves_of(left, BM, BN // 2)
                _leave(first, out, pre, m, n, N, ACTIVATED, BN // 4, TANH, SAVE)
                _leave(second, out, pre, m, n + BN // 4, N, ACTIVATED, BN // 4, TANH, SAVE)
                first, second = halves_of(right, BM, BN // 2)
                _leave(first, out, pre, m, n + BN // 2, N, ACTIVATED, BN // 4, TANH, SAVE)
                _leave(second, out, pre, m, n + 3 * (BN // 4), N, ACTIVATED, BN // 4, TANH, SAVE)


@triton.jit
def _leave(
    x, out, pre, m, n, N: tl.constexpr, ACTIVATED: tl.constexpr, WIDE: tl.constexpr, TANH: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Store SiLU(x) where the column is activated, else x; with SAVE also x (`pre` ends where activation does)."""
    if SAVE:
        pre.store([m, n], x.to(pre.dtype))
    if ACTIVATED == N:  # the usual case, without a choice for each element
        out.store([m, n], silu(x, TANH).to(out.dtype))
    else:
        chosen = (n + tl.arange(0, WIDE)) < ACTIVATED
        out.store([m, n], tl.where(chosen[None, :], silu(x, TANH), x).to(out.dtype))


@dataclass(frozen=True)
class Folded:
    """The projection with the norm's scale and shift folded in."""

    weight: Tensor  # (N, K), dtype of the product
    row_sum: Tensor  # (N,) float32
    shift: Tensor  # (N,) float32


@dataclass(frozen=True)
class Projected:
    """What the projection leaves: what SiLU saw (T, activated) and the normalised rows (T, K) only on request."""

    uvqk: Tensor
    pre: Tensor | None
    normed: Tensor | None
    statistics: Statistics


def fold(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> Folded:
    """Return W' and what goes with it, from the parameters in any floating dtype."""
    columns, width = weight.shape
    row_sum, shift = (torch.empty(columns, dtype=torch.float32, device=weight.device) for _ in range(2))
    folded = torch.empty(columns, width, dtype=dtype, device=weight.device)
    block = min(FOLD_COLUMNS, triton.next_power_of_2(width))
    fold_kernel[(columns,)](weight, bias, gamma, beta, folded, row_sum, shift, width, BLOCK=block, num_warps=4)
    return Folded(folded, row_sum, shift)


def project(
    z_TK: Tensor,
    folded: Folded,
    activated: int,
    epsilon: float,
    *,
    statistics: Statistics | None = None,
    save_pre: bool = False,
    save_normed: bool = False,
    tiling: Tiling | None = None,
) -> Projected:
    """Return SiLU(norm(z) W' + b') with columns from `activated` on left without SiLU.

    z (T, K) contiguous, T at least 1; 16-byte rows everywhere. Statistics are computed unless given.
    """
    (rows, width), (columns, product) = z_TK.shape, (len(folded.weight), folded.weight.dtype)
    x, normed, convert = z_TK, None, z_TK.dtype != product
    launch = None if tiling else staying(product, rows, width, columns, z_TK.device, **IN_PROJECTION)
    measure = launch is not None and statistics is None and not convert
    if measure:
        statistics = z_TK.new_empty(rows, dtype=torch.float32), z_TK.new_empty(rows, dtype=torch.float32)
    elif statistics is None or save_normed or convert:
        statistics, normed = normalise(z_TK, epsilon, statistics, product if save_normed or convert else None)
    if convert and normed is not None:
        x = normed
    uvqk = torch.empty(rows, columns, dtype=product, device=z_TK.device)
    pre = torch.empty(rows, activated, dtype=product, device=z_TK.device) if save_pre else None
    if launch is not None:
        from longview.ops.hstu_layer.gluon_project import project_staying

        project_staying(
            x, folded.weight, uvqk, pre, statistics, folded.row_sum, folded.shift, epsilon, launch,
            activated=activated, normed=convert, measure=measure,
        )  # fmt: skip
        if measure and save_normed:  # from the same statistics: what backward recomputes has the same bits
            _, normed = normalise(z_TK, epsilon, statistics, product)
        return Projected(uvqk, pre, normed if save_normed else None, statistics)
    tiling = tiling or default_tiling(product, width, save_pre, roomy(z_TK.device))
    project_kernel[(tiling.programs(rows, columns, z_TK.device),)](
        TensorDescriptor.from_tensor(x, [tiling.rows, tiling.depth]),
        TensorDescriptor.from_tensor(folded.weight, [tiling.columns, tiling.depth]),
        TensorDescriptor.from_tensor(uvqk, tiling.leaving()),
        None if pre is None else TensorDescriptor.from_tensor(pre, tiling.leaving()),
        *statistics, folded.row_sum, folded.shift, rows, N=columns, K=width, ACTIVATED=activated,
        **tiling.constants(), NORMED=convert, TANH=uvqk.is_cuda and product != torch.float32, SAVE=save_pre,
        **tiling.launch(),
    )  # fmt: skip
    return Projected(uvqk, pre, normed if save_normed else None, statistics)


def default_tiling(product: torch.dtype, width: int, save: bool = False, large: bool = True) -> Tiling:
    """Return the tiling for a product of this dtype; `save`: of both results; `large`: with 227 KB of shared memory.

    Over a short inner dimension the epilogue weighs more: two small programs on a multiprocessor hide each other's.
    """
    if product == torch.float32:
        return Tiling(64, 64, 32, 4, 2, group=8)
    if not large:
        return Tiling(128, 128, 32, 8, 2, group=8, parts=2)
    if width <= 512:
        return Tiling(128, 128, 64, 4, 3, resident=2, flatten=True, parts=4)
    # One pipeline over all tiles needs registers that storing both results does not leave.
    return Tiling(128, 256, 64, 8, 3, resident=1, flatten=not save, parts=2)


def signature(tiling: Tiling, product: str = "bf16", save: bool = False) -> dict[str, str]:
    """Return the types of the product kernel's arguments."""
    leaving = "tensordesc<{}[{},{}]>".format(product, *tiling.leaving())
    types = {
        "x": f"tensordesc<{product}[{tiling.rows},{tiling.depth}]>",
        "w": f"tensordesc<{product}[{tiling.columns},{tiling.depth}]>",
        "out": leaving,
        "T": "i32",
    }
    types.update(dict.fromkeys(("mean", "rstd", "row_sum", "shift"), "*fp32"))
    return {**types, "pre": leaving} if save else types


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = dict.fromkeys(("weight", "bias", "gamma", "beta", "row_sum", "shift"), "*fp32")
    found.append(("fold", fold_kernel, {**types, "folded": "*bf16", "K": "i32"}, {"BLOCK": 512}, {"num_warps": 4}))
    for width, normed, save in itertools.product((512, 1024), (False, True), (False, True)):
        tiling = default_tiling(torch.bfloat16, width, save)
        sizes = {"N": 4 * width, "K": width, "ACTIVATED": 4 * width, "NORMED": normed, "TANH": True, "SAVE": save}
        constants = {**tiling.constants(), **sizes, **({} if save else {"pre": None})}
        name = f"project {width}{' normed' if normed else ''}{' save' if save else ''}"
        found.append((name, project_kernel, signature(tiling, save=save), constants, tiling.launch()))
    return found
