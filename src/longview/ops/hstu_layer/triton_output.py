# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The normalised attention output times U, with dropout, through the output product onto the residual stream.

Two forms of the product kernel:

- `gated`: norm, gate and dropout happen between loading A and U and multiplying; the gated rows never reach memory.
  Statistics come from a first walk over the row block, which the second finds in the cache. Row norm only.
- `given`: a light kernel writes the gated rows (and statistics); the product is a plain one with bias and residual.

A "group" is what one norm sees: a row of all heads, or one head of a row. Shapes: T rows, G = H·d_v columns,
D width, R groups a program of W columns (WP: rounded up to a power of two).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longview.ops.hstu_layer.counter import kept_scale, level
from longview.ops.hstu_layer.tiling import Tiling, Walk, roomy
from longview.ops.hstu_layer.triton_norm import Statistics
from longview.ops.hstu_layer.triton_numerics import kept, tile_of

FORWARD = Walk(elements=2048, warps=4)


@dataclass(frozen=True)
class Gate:
    """What turns the attention's output into the input of the product."""

    weight: Tensor  # (G,) or (d_v,): scale of the norm
    bias: Tensor  # likewise: its shift
    groups: int  # parts of a row that are normalised each by itself
    epsilon: float
    rate: float  # dropout; 0 in evaluation
    seed: int

    def dropout(self) -> dict[str, Any]:
        """Return the kernels' arguments on dropout."""
        return {"seed": self.seed, "level": level(self.rate), "kept_by": kept_scale(self.rate)}


@triton.jit(do_not_specialize=["seed", "level", "groups_total"])
def gate_kernel(
    a, u, gated, mean, rstd, gamma, beta, seed, level, kept_by, groups_total, W, u_stride, epsilon,
    GROUPS: tl.constexpr, R: tl.constexpr, WP: tl.constexpr, GIVEN: tl.constexpr,
    DROP: tl.constexpr,
):  # fmt: skip
    """gated = mask * norm(a) * u for R groups, and their statistics unless GIVEN."""
    group = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, WP)
    there = group < groups_total
    live = there[:, None] & (column < W)[None, :]
    at = group.to(tl.int64)[:, None] * W + column[None, :]
    token, first = group // GROUPS, (group % GROUPS) * W
    u_at = token.to(tl.int64)[:, None] * u_stride + (first[:, None] + column[None, :])
    x = tl.load(a + at, mask=live, other=0.0).to(tl.float32)
    gate = tl.load(u + u_at, mask=live, other=0.0).to(tl.float32)
    if GIVEN:
        mu = tl.load(mean + group, mask=there, other=0.0)
        scale = tl.load(rstd + group, mask=there, other=0.0)
    else:
        mu = tl.sum(x, 1) / W
        centred = tl.where(live, x - mu[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / W + epsilon)
        tl.store(mean + group, mu, mask=there)
        tl.store(rstd + group, scale, mask=there)
    g = tl.load(gamma + column, mask=column < W, other=0.0).to(tl.float32)
    b = tl.load(beta + column, mask=column < W, other=0.0).to(tl.float32)
    y = ((x - mu[:, None]) * scale[:, None] * g[None, :] + b[None, :]) * gate
    if DROP:
        y = tl.where(kept(seed, token, first, level, WP), y * kept_by, 0.0)
    tl.store(gated + at, y, mask=live)


@triton.jit(do_not_specialize=["seed", "level", "T"])
def output_kernel(
    y, u, w, z, out, a_first, mean, rstd, gamma, beta, bias, seed, level, kept_by, T, epsilon,
    N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
    FLATTEN: tl.constexpr, HALVES: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Tiles of z + gated @ w.T + bias; y (A itself in the form `gated`), u, w, z and out are tensor descriptors."""
    blocks_m, blocks_n = tl.cdiv(T, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        live = row < T
        if FORM == "gated":
            mu, scale = _statistics(y, a_first, m, T, epsilon, K, BM, BK)
            tl.store(mean + row, mu, mask=live & (block_n == 0))
            tl.store(rstd + row, scale, mask=live & (block_n == 0))
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, K, BK):
            x = y.load([m, k])
            if FORM == "gated":
                at = k + tl.arange(0, BK)
                g = tl.load(gamma + at, mask=at < K, other=0.0).to(tl.float32)
                b = tl.load(beta + at, mask=at < K, other=0.0).to(tl.float32)
                gate = u.load([m, k]).to(tl.float32)
                gated = ((x.to(tl.float32) - mu[:, None]) * scale[:, None] * g[None, :] + b[None, :]) * gate
                if DROP:
                    gated = tl.where(kept(seed, row, k + tl.zeros_like(row), level, BK), gated * kept_by, 0.0)
                x = gated.to(w.dtype)
            acc = tl.dot(x, w.load([n, k]).T, acc, input_precision="ieee")
        acc += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if HALVES == 2:
            left, right = acc.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
            out.store([m, n], (left + z.load([m, n]).to(tl.float32)).to(out.dtype))
            out.store([m, n + BN // 2], (right + z.load([m, n + BN // 2]).to(tl.float32)).to(out.dtype))
        else:
            out.store([m, n], (acc + z.load([m, n]).to(tl.float32)).to(out.dtype))


@triton.jit
def _statistics(a, a_first, m, T, epsilon, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Return mean and 1/std of BM rows; squares are summed around each row's first element, see `triton_project`."""
    row = m + tl.arange(0, BM)
    pivot = tl.load(a_first + row.to(tl.int64) * K, mask=row < T, other=0.0).to(tl.float32)
    first = tl.zeros((BM,), tl.float32)
    second = tl.zeros((BM,), tl.float32)
    for k in tl.range(0, K, BK):
        moved = a.load([m, k]).to(tl.float32) - pivot[:, None]
        first += tl.sum(moved, 1)
        second += tl.sum(moved * moved, 1)
    drift = first / K
    return pivot + drift, 1.0 / tl.sqrt(tl.maximum(second / K - drift * drift, 0.0) + epsilon)


def gate_forward(
    a_TG: Tensor, u_TG: Tensor, gate: Gate, given: Statistics | None = None, walk: Walk = FORWARD
) -> tuple[Tensor, Statistics]:
    """Return the gated rows (T, G) in the dtype of A, and the statistics of each group (T·groups,)."""
    rows, width = a_TG.shape
    groups, wide = rows * gate.groups, width // gate.groups
    mean, rstd = given or (a_TG.new_empty(groups, dtype=torch.float32), a_TG.new_empty(groups, dtype=torch.float32))
    gated = torch.empty_like(a_TG)
    padded = max(8, triton.next_power_of_2(wide))
    gate_kernel[(walk.programs(groups, padded, a_TG.device),)](
        a_TG, u_TG, gated, mean, rstd, gate.weight, gate.bias, **gate.dropout(),
        groups_total=groups, W=wide, u_stride=u_TG.stride(0), epsilon=gate.epsilon,
        GROUPS=gate.groups, R=walk.rows(padded), WP=padded, GIVEN=given is not None,
        DROP=gate.rate > 0, num_warps=walk.warps,
    )  # fmt: skip
    return gated, (mean, rstd)


def output(
    z_TD: Tensor,
    a_TG: Tensor,
    u_TG: Tensor,
    gate: Gate,
    weight: Tensor,
    bias: Tensor,
    *,
    keep_gated: bool = False,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Statistics, Tensor | None]:
    """Return z + Linear(mask * norm(A) * U) (T, D) in the dtype of z, A's statistics, and the gated rows if kept.

    A (T, G) and z contiguous, U a view with unit column stride; `weight` (D, G) in the dtype of A.
    """
    (rows, width), inner = z_TD.shape, a_TG.shape[1]
    tiling = tiling or default_tiling(a_TG.dtype, width, roomy(z_TD.device))
    form, gated = tiling.form, None
    if form == "gated" and (gate.groups > 1 or inner % tiling.depth):
        form = "given"
    if form == "given":
        gated, statistics = gate_forward(a_TG, u_TG, gate)
    else:
        statistics = z_TD.new_empty(rows, dtype=torch.float32), z_TD.new_empty(rows, dtype=torch.float32)
    result = torch.empty_like(z_TD)
    left, leaving = [tiling.rows, tiling.depth], [tiling.rows, tiling.columns // tiling.halves]
    output_kernel[(tiling.programs(rows, width, z_TD.device),)](
        TensorDescriptor.from_tensor(a_TG if gated is None else gated, left),
        TensorDescriptor.from_tensor(u_TG, left),
        TensorDescriptor.from_tensor(weight, [tiling.columns, tiling.depth]),
        TensorDescriptor.from_tensor(z_TD, leaving),
        TensorDescriptor.from_tensor(result, leaving),
        a_TG, *statistics, gate.weight, gate.bias, bias, **gate.dropout(),
        T=rows, epsilon=gate.epsilon, N=width, K=inner,
        **{**tiling.constants(), "FORM": form}, DROP=gate.rate > 0, **tiling.launch(),
    )  # fmt: skip
    if keep_gated and gated is None:
        gated, _ = gate_forward(a_TG, u_TG, gate, statistics)
    return result, statistics, gated if keep_gated else None


def default_tiling(product: torch.dtype, width: int, large: bool = True) -> Tiling:
    """Return the tiling for a product of this dtype; `large`: with 227 KB of shared memory.

    Fused while two programs cover a row of the result; beyond, each would gate the same rows once more.
    """
    if product == torch.float32:
        return Tiling(64, 64, 32, 4, 2, group=8, form="gated")
    if not large:
        return Tiling(128, 128, 32, 8, 2, group=8, halves=2, form="given")
    if width <= 512:
        return Tiling(128, 256, 64, 8, 3, halves=2, form="gated")
    return Tiling(128, 256, 64, 8, 3, group=8, halves=2, form="given")


def signature(tiling: Tiling, stream: str = "bf16", product: str = "bf16") -> dict[str, str]:
    """Return the types of the product kernel's arguments."""
    left = f"tensordesc<{product}[{tiling.rows},{tiling.depth}]>"
    leaving = f"tensordesc<{stream}[{tiling.rows},{tiling.columns // tiling.halves}]>"
    types = {"y": left, "u": left, "w": f"tensordesc<{product}[{tiling.columns},{tiling.depth}]>", "z": leaving}
    types.update({"out": leaving, "a_first": f"*{product}", "seed": "i64", "level": "i32"})
    types.update(dict.fromkeys(("mean", "rstd", "gamma", "beta", "bias"), "*fp32"))
    return {**types, "kept_by": "fp32", "epsilon": "fp32", "T": "i32"}


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = {**dict.fromkeys(("a", "u", "gated"), "*bf16"), "seed": "i64", "level": "i32", "kept_by": "fp32"}
    types.update(dict.fromkeys(("mean", "rstd", "gamma", "beta"), "*fp32"))
    types.update({"groups_total": "i32", "W": "i32", "u_stride": "i32", "epsilon": "fp32"})
    for width, groups in ((512, 1), (1024, 1), (128, 4)):
        sizes = {"GROUPS": groups, "R": FORWARD.rows(width), "WP": width, "GIVEN": False, "DROP": True}
        found.append((f"gate {width}", gate_kernel, types, sizes, {"num_warps": FORWARD.warps}))
    for width in (512, 1024):
        tiling = default_tiling(torch.bfloat16, width)
        constants = {**tiling.constants(), "N": width, "K": width, "DROP": True}
        found.append((f"output {tiling.form}", output_kernel, signature(tiling), constants, tiling.launch()))
    return found
