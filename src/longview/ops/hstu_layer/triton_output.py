# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The normalised attention output times U, with dropout, through the output product onto the residual stream.

A light kernel writes the gated rows and the statistics of the norm; the product is a plain one with bias and residual.
Gating between loading and multiplying instead would save two passes over the gated rows, but each column block of the
product would gate its rows again, and the registers that takes cost more than the passes. On Hopper, `gluon_output.py`
has the product for narrow layers.

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
from triton.language.extra.cuda import gdc_launch_dependents
from triton.tools.tensor_descriptor import TensorDescriptor

from longview.ops.dropout.counter import kept_scale, level
from longview.ops.dropout.triton_counter import kept
from longview.ops.hstu_layer.tiling import Tiling, Walk, parts_of, roomy
from longview.ops.hstu_layer.triton_norm import Statistics
from longview.ops.hstu_layer.triton_numerics import halves_of, tile_of

FORWARD = Walk(elements=1024, warps=1)


@dataclass(frozen=True)
class Gate:
    """What turns the attention's output into the input of the product."""

    weight: Tensor  # (G,) or (d_v,): scale of the norm
    bias: Tensor  # likewise: its shift
    groups: int  # parts of a row that are normalised each by itself
    epsilon: float
    rate: float  # dropout; 0 in evaluation
    seed: Tensor | None  # (1,) int64 on the device of the rows; None without dropout

    def dropout(self) -> dict[str, Any]:
        """Return the kernels' arguments on dropout."""
        return {"seed": self.seed, "level": level(self.rate), "kept_by": kept_scale(self.rate)}


@triton.jit(do_not_specialize=["level", "groups_total"])
def gate_kernel(
    a, u, gated, mean, rstd, gamma, beta, seed, level, kept_by, groups_total, u_stride, epsilon,
    W: tl.constexpr, GROUPS: tl.constexpr, R: tl.constexpr, WP: tl.constexpr, DROP: tl.constexpr, NEXT: tl.constexpr,
):  # fmt: skip
    """gated = mask * norm(a) * u for R groups, and their statistics. NEXT: a kernel that waits for them may begin."""
    if NEXT:
        gdc_launch_dependents()
    group = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, WP)
    there = group < groups_total
    live = there[:, None] & (column < W)[None, :]
    at = group.to(tl.int64)[:, None] * W + column[None, :]
    token, first = group // GROUPS, (group % GROUPS) * W
    u_at = token.to(tl.int64)[:, None] * u_stride + (first[:, None] + column[None, :])
    x = tl.load(a + at, mask=live, other=0.0).to(tl.float32)
    gate = tl.load(u + u_at, mask=live, other=0.0).to(tl.float32)
    mu = tl.sum(x, 1) / W
    centred = x - mu[:, None] if W == WP else tl.where(live, x - mu[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / W + epsilon)
    tl.store(mean + group, mu, mask=there)
    tl.store(rstd + group, scale, mask=there)
    g, b = columns_of(gamma, W, WP), columns_of(beta, W, WP)
    y = (centred * scale[:, None] * g[None, :] + b[None, :]) * gate
    if DROP:  # a factor: a chosen y would be rounded in pairs, taken apart, chosen and put together again
        y *= tl.where(kept(tl.load(seed), token, first, level, WP), kept_by, 0.0)
    tl.store(gated + at, y, mask=live)


@triton.jit
def columns_of(values, W: tl.constexpr, WP: tl.constexpr):
    """Return W values, padded to WP, as float32, for threads that hold eight neighbouring columns of 16-bit rows.

    A thread reads four float32 values at a time, and read in one go they would have to change threads.
    """
    if values.dtype.element_ty == tl.float32:
        column = 8 * tl.arange(0, WP // 8)[:, None] + tl.arange(0, 4)[None, :]
        low = tl.load(values + column, mask=column < W, other=0.0)
        high = tl.load(values + column + 4, mask=column + 4 < W, other=0.0)
        result = tl.join(low, high).permute(0, 2, 1).reshape(WP)
    else:
        column = tl.arange(0, WP)
        result = tl.load(values + column, mask=column < W, other=0.0).to(tl.float32)
    return result


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    gated, w, z, out, bias, T, N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    FLATTEN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Tiles of z + gated @ w.T + bias; gated, w, z and out are tensor descriptors."""
    blocks_m, blocks_n = tl.cdiv(T, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        column = n + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, K, BK):
            acc = tl.dot(gated.load([m, k]), w.load([n, k]).T, acc, input_precision="ieee")
        acc += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if PARTS == 1:
            _leave(acc, z, out, m, n)
        else:
            left, right = halves_of(acc, BM, BN)
            if PARTS == 2:
                _leave(left, z, out, m, n)
                _leave(right, z, out, m, n + BN // 2)
            else:
                first, second = halves_of(left, BM, BN // 2)
                _leave(first, z, out, m, n)
                _leave(second, z, out, m, n + BN // 4)
                first, second = halves_of(right, BM, BN // 2)
                _leave(first, z, out, m, n + BN // 2)
                _leave(second, z, out, m, n + 3 * (BN // 4))


@triton.jit
def _leave(x, z, out, m, n):
    """Store x and the residual at (m, n)."""
    out.store([m, n], (x + z.load([m, n]).to(tl.float32)).to(out.dtype))


def gated_output(
    z_TD: Tensor, a_TG: Tensor, u_TG: Tensor, gate: Gate, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Statistics]:
    """Return z + Linear(gated) (T, D), the gated rows and their statistics: `gate_forward`, then `output`.

    On Hopper, the product's programs begin while those of the gate end.
    """
    following = holds(z_TD, a_TG)
    gated, statistics = gate_forward(a_TG, u_TG, gate, following=following)
    return output(z_TD, gated, weight, bias, after_gate=following), gated, statistics


def gate_forward(
    a_TG: Tensor, u_TG: Tensor, gate: Gate, walk: Walk = FORWARD, *, following: bool = False
) -> tuple[Tensor, Statistics]:
    """Return the gated rows (T, G) in the dtype of A, and the statistics of each group (T·groups,).

    `following`: a kernel for Hopper comes next, which waits for the rows itself.
    """
    rows, width = a_TG.shape
    groups, wide = rows * gate.groups, width // gate.groups
    mean, rstd = (a_TG.new_empty(groups, dtype=torch.float32) for _ in range(2))
    gated = torch.empty_like(a_TG)
    padded = max(8, triton.next_power_of_2(wide))
    gate_kernel[(walk.programs(groups, padded, a_TG.device),)](
        a_TG, u_TG, gated, mean, rstd, gate.weight, gate.bias, **gate.dropout(),
        groups_total=groups, u_stride=u_TG.stride(0), epsilon=gate.epsilon,
        W=wide, GROUPS=gate.groups, R=walk.rows(padded), WP=padded, DROP=gate.rate > 0, NEXT=following,
        num_warps=walk.warps,
    )  # fmt: skip
    return gated, (mean, rstd)


def output(
    z_TD: Tensor,
    gated_TG: Tensor,
    weight: Tensor,
    bias: Tensor,
    tiling: Tiling | None = None,
    *,
    after_gate: bool = False,
) -> Tensor:
    """Return z + Linear(gated) (T, D) in the dtype of z.

    z and the gated rows (T, G) contiguous; `weight` (D, G) in the dtype of the gated rows. `after_gate`: the last
    kernel launched is the one that writes the gated rows, with `following`.
    """
    (rows, width), inner = z_TD.shape, gated_TG.shape[1]
    result = torch.empty_like(z_TD)
    if tiling is None and holds(z_TD, gated_TG):
        from longview.ops.hstu_layer.gluon_output import output_held

        output_held(z_TD, gated_TG, weight, bias, result, after_gate=after_gate)
        return result
    tiling = tiling or default_tiling(gated_TG.dtype, width, roomy(z_TD.device), z_TD.dtype)
    output_kernel[(tiling.programs(rows, width, z_TD.device),)](
        TensorDescriptor.from_tensor(gated_TG, [tiling.rows, tiling.depth]),
        TensorDescriptor.from_tensor(weight, [tiling.columns, tiling.depth]),
        TensorDescriptor.from_tensor(z_TD, tiling.leaving()),
        TensorDescriptor.from_tensor(result, tiling.leaving()),
        bias, rows, N=width, K=inner, **tiling.constants(), **tiling.launch(),
    )  # fmt: skip
    return result


def holds(z_TD: Tensor, gated_TG: Tensor) -> bool:
    """Return whether the product of `gluon_output.py` serves; a float32 tile leaves too little room for weights."""
    (rows, width), inner = z_TD.shape, gated_TG.shape[1]
    return z_TD.dtype == gated_TG.dtype and parts_of(z_TD.dtype, rows, inner, width, z_TD.device) is not None


def default_tiling(
    product: torch.dtype, width: int, large: bool = True, stream: torch.dtype = torch.bfloat16
) -> Tiling:
    """Return the tiling for a product of this dtype; `large`: with 227 KB of shared memory.

    A float32 `stream` leaves in smaller parts: residual and result take twice the room.

    Narrow layers move more bytes a multiplication: two small programs on a multiprocessor hide each other's residual.
    """
    if product == torch.float32:
        return Tiling(64, 64, 32, 4, 2, group=8)
    if not large:
        return Tiling(128, 128, 32, 8, 2, group=8, parts=2)
    if width <= 512:
        return Tiling(128, 128, 64, 4, 3, parts=2)
    return Tiling(128, 256, 64, 8, 3, resident=1, flatten=True, parts=4 if stream == torch.float32 else 2)


def signature(tiling: Tiling, stream: str = "bf16", product: str = "bf16") -> dict[str, str]:
    """Return the types of the product kernel's arguments."""
    leaving = "{}[{},{}]".format(stream, *tiling.leaving())
    return {
        "gated": f"tensordesc<{product}[{tiling.rows},{tiling.depth}]>",
        "w": f"tensordesc<{product}[{tiling.columns},{tiling.depth}]>",
        "z": f"tensordesc<{leaving}>",
        "out": f"tensordesc<{leaving}>",
        "bias": "*fp32",
        "T": "i32",
    }


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = {**dict.fromkeys(("a", "u", "gated"), "*bf16"), "seed": "*i64", "level": "i32", "kept_by": "fp32"}
    types.update(dict.fromkeys(("mean", "rstd", "gamma", "beta"), "*fp32"))
    types.update({"groups_total": "i32", "u_stride": "i32:16", "epsilon": "fp32"})
    for width, groups, following in ((512, 1, False), (512, 1, True), (1024, 1, False), (128, 4, False)):
        sizes = {"W": width, "GROUPS": groups, "R": FORWARD.rows(width), "WP": width, "DROP": True, "NEXT": following}
        name = f"gate {width}{', followed' if following else ''}"
        found.append((name, gate_kernel, types, sizes, {"num_warps": FORWARD.warps}))
    for width in (512, 1024):
        for stream, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            tiling = default_tiling(torch.bfloat16, width, stream=dtype)
            constants = {**tiling.constants(), "N": width, "K": width}
            row = (f"output {width} {stream}", output_kernel, signature(tiling, stream), constants, tiling.launch())
            found.append(row)
    return found
