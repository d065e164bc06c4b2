"""The FP8 path of a layer's matrix products, checked and sent to the kernels or to their emulation.

Scales belong to rows: one for a row of activations, one for an output row of the weights ("column" of the product).

Source: ULTRA-HSTU, arXiv 2602.16986: row-wise E4M3, quantisation fused with what precedes it, the residual ("2-D bias")
added in the product's epilogue, backward in bfloat16.
Shape suffixes: T rows, K inner, N columns, G = columns of the attention's output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.kernels import on_device_of
from longview.ops.quantisation import emulation
from longview.ops.quantisation.choice import MULTIPLE, why_no_fp8, why_no_pipeline

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class QuantisedRows(NamedTuple):
    """Rows as x ≈ values * scale: values (T, K) float8_e4m3fn, scale (T,) float32."""

    values: Tensor
    scale: Tensor


class QuantisedNorm(NamedTuple):
    """Normalised rows, quantised, with what backward needs: mean and 1/deviation of what was normalised, float32."""

    values: Tensor
    scale: Tensor
    mean: Tensor
    rstd: Tensor


def quantise_rows(x_TK: Tensor) -> QuantisedRows:
    """Return x with E4M3 values and one scale a row, which takes the row's largest magnitude to 448.

    A row of zeros stays one. A row that holds an infinity or a NaN is refused on a CPU; on a GPU, where asking would
    wait for the device, it makes a row of NaNs in any product it enters.

    Args:
        x_TK: (T, K) contiguous, float32, bfloat16 or float16.

    Raises:
        InputError: a shape or dtype that does not fit; on a CPU a number that is not finite, with its row.

    Example:
        >>> rows = quantise_rows(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        >>> rows.values.float() * rows.scale[:, None]
        tensor([[ 1.0000, -0.5000],
                [ 0.0000,  0.0000]])
    """
    _check_floats("x", x_TK)
    if not x_TK.numel():
        return QuantisedRows(x_TK.to(torch.float8_e4m3fn), x_TK.new_ones(len(x_TK), dtype=torch.float32))
    if _kernels(x_TK):
        from longview.ops.quantisation import triton_rows

        with on_device_of(x_TK):
            return QuantisedRows(*triton_rows.quantise(x_TK.contiguous()))
    return QuantisedRows(*emulation.quantise(x_TK))


def normalise_quantise(z_TK: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-6) -> QuantisedNorm:
    """Return the quantised rows of LayerNorm(z): statistics, norm, scale and rounding in one pass.

    Args:
        z_TK: (T, K), float32, bfloat16 or float16.
        gamma, beta: (K,) scale and shift of the norm.
        epsilon: added to the variance.

    Raises:
        InputError: as `quantise_rows`; gamma or beta of another shape.
    """
    _check_floats("z", z_TK)
    _check_vectors(z_TK.shape[1], gamma=gamma, beta=beta)
    if not z_TK.numel():
        nothing = z_TK.new_empty(len(z_TK), dtype=torch.float32)
        return QuantisedNorm(*quantise_rows(z_TK), nothing, nothing)
    path: Any = emulation
    if _kernels(z_TK):
        from longview.ops.quantisation import triton_rows as path
    with on_device_of(z_TK):
        values, scale, statistics = path.normalise_quantise(z_TK.contiguous(), gamma, beta, epsilon)
    return QuantisedNorm(values, scale, *statistics)


def gate_quantise(
    a_TG: Tensor,
    u_TG: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int = 1,
    epsilon: float = 1e-6,
    rate: float = 0.0,
    seed: Tensor | None = None,
) -> QuantisedNorm:
    """Return the quantised rows of dropout(norm(a) * u) in one pass, and the statistics (T·groups,) of the norm.

    Args:
        a_TG: (T, G), the attention's output.
        u_TG: (T, G), its gate; may be columns of a wider tensor.
        gamma, beta: (G / groups,) scale and shift of the norm.
        groups: parts of a row that are normalised each by itself; the scale is one for the whole row.
        epsilon: added to the variance.
        rate: of dropout; which elements are dropped follows from `seed`, (1,) int64 on the device of `a`, as in
            `ops.dropout.counter`.

    Raises:
        InputError: as `quantise_rows`; shapes that do not fit each other.
    """
    _check_floats("a", a_TG)
    _check_floats("u", u_TG)
    if u_TG.shape != a_TG.shape or u_TG.stride(1) != 1:
        raise InputError(
            f"gate_quantise: u has shape {tuple(u_TG.shape)} and stride {u_TG.stride()}; expected {tuple(a_TG.shape)} "
            "with neighbouring columns side by side"
        )
    if groups < 1 or a_TG.shape[1] % groups:
        raise InputError(f"gate_quantise: groups is {groups}; expected a divisor of {a_TG.shape[1]}, the columns of a")
    if not 0 <= rate < 1:
        raise InputError(f"gate_quantise: rate is {rate}; expected a rate in [0, 1)")
    if rate and (seed is None or seed.numel() != 1 or seed.device != a_TG.device):
        raise InputError(f"gate_quantise: a rate of {rate} needs a seed, one int64 on {a_TG.device}, and it is {seed}")
    _check_vectors(a_TG.shape[1] // groups, gamma=gamma, beta=beta)
    if not a_TG.numel():
        nothing = a_TG.new_empty(len(a_TG) * groups, dtype=torch.float32)
        return QuantisedNorm(*quantise_rows(a_TG), nothing, nothing)
    path: Any = emulation
    if _kernels(a_TG):
        from longview.ops.quantisation import triton_rows as path
    with on_device_of(a_TG):
        found = path.gate_quantise(a_TG.contiguous(), u_TG, gamma, beta, groups, epsilon, rate, seed)
    values, scale, statistics = found
    return QuantisedNorm(values, scale, *statistics)


def fp8_linear(
    x_q: Tensor,
    x_scale: Tensor,
    w_q: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activated: int = 0,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Return SiLU(x w^T + bias) + residual of quantised rows, all but the product itself in its epilogue.

    Args:
        x_q, x_scale: (T, K) float8_e4m3fn and (T,) float32, as `quantise_rows` gives them.
        w_q, w_scale: (N, K) and (N,), likewise.
        bias: (N,), or None.
        residual: (T, N) of `out_dtype`, or None.
        activated: columns from the left that pass through SiLU, before the residual is added.
        out_dtype: float32, bfloat16 or float16.

    Returns:
        (T, N) of `out_dtype`. On a GPU Hopper's fast accumulation is used (about 14 bits of a sum of 8-bit products).

    Raises:
        InputError: shapes, dtypes or devices that do not fit; a GPU without FP8, with the reason.
    """
    _check_product(x_q, x_scale, w_q, w_scale, activated)
    _check_epilogue((len(x_q), len(w_q)), bias, residual, out_dtype)
    if not len(x_q):
        return torch.empty(0, len(w_q), dtype=out_dtype, device=x_q.device)
    contiguous = None if residual is None else residual.contiguous()
    path = _product_path(x_q, len(w_q), residual is not None, out_dtype)
    with on_device_of(x_q):
        out: Tensor = path.product(
            x_q.contiguous(), x_scale, w_q.contiguous(), w_scale, bias, contiguous, activated, out_dtype
        )
    return out


def _kernels(x: Tensor) -> bool:
    """Return whether kernels serve x; on a CPU the emulation does.

    Raises:
        InputError: x is on a GPU that cannot.
    """
    if x.device.type == "cpu":
        return False
    reason = why_no_fp8(x.device, x.shape[1])
    if reason is not None:
        raise InputError(f"FP8 cannot be used here: {reason}")
    return True


def _product_path(x_q: Tensor, columns: int, residual: bool, out_dtype: torch.dtype) -> Any:
    """Return the module whose `product` serves: Hopper's pipeline, the portable kernel, or the emulation."""
    if not _kernels(x_q):
        return emulation
    return product_kernels(x_q.device, columns, x_q.shape[1], residual=residual, out_dtype=out_dtype)


def product_kernels(device: torch.device, columns: int, inner: int, *, residual: bool, out_dtype: torch.dtype) -> Any:
    """Return the module whose `product` serves where kernels do: Hopper's pipeline or the portable form."""
    if why_no_pipeline(device) is None:
        from longview.ops.quantisation import triton_hopper

        if triton_hopper.why_not_shape(columns, inner, residual, out_dtype) is None:
            return triton_hopper
    from longview.ops.quantisation import triton_product

    return triton_product


def _check_floats(name: str, x: Tensor) -> None:
    if x.dim() != 2 or x.dtype not in FLOATS:
        raise InputError(
            f"FP8: {name} is {x.dtype} of shape {tuple(x.shape)}; expected two dimensions, float32, bfloat16 or float16"
        )


def _check_vectors(width: int, **vectors: Tensor) -> None:
    for name, x in vectors.items():
        if tuple(x.shape) != (width,):
            raise InputError(f"FP8: {name} has shape {tuple(x.shape)}; expected ({width},)")


def _check_product(x_q: Tensor, x_scale: Tensor, w_q: Tensor, w_scale: Tensor, activated: int) -> None:
    for name, rows, scale in (("x", x_q, x_scale), ("w", w_q, w_scale)):
        if rows.dim() != 2 or rows.dtype != torch.float8_e4m3fn:
            raise InputError(
                f"fp8_linear: {name}_q is {rows.dtype} of shape {tuple(rows.shape)}; expected two dimensions of "
                "float8_e4m3fn (quantise_rows makes them)"
            )
        if tuple(scale.shape) != (len(rows),) or scale.dtype != torch.float32:
            raise InputError(
                f"fp8_linear: {name}_scale is {scale.dtype} of shape {tuple(scale.shape)}; expected float32 of shape "
                f"({len(rows)},), a scale for each row of {name}_q"
            )
    if x_q.shape[1] != w_q.shape[1]:
        raise InputError(f"fp8_linear: x_q has {x_q.shape[1]} columns and w_q {w_q.shape[1]}; expected as many")
    if x_q.device.type != "cpu" and (x_q.shape[1] % MULTIPLE or len(w_q) % MULTIPLE):
        raise InputError(
            f"fp8_linear: {x_q.shape[1]} inner and {len(w_q)} outer columns; the kernels need multiples of {MULTIPLE}"
        )
    if not 0 <= activated <= len(w_q):
        raise InputError(f"fp8_linear: activated is {activated}; expected 0 to {len(w_q)}, the columns of the result")


def _check_epilogue(
    shape: tuple[int, int], bias: Tensor | None, residual: Tensor | None, out_dtype: torch.dtype
) -> None:
    if out_dtype not in FLOATS:
        raise InputError(f"fp8_linear: out_dtype is {out_dtype}; expected float32, bfloat16 or float16")
    if bias is not None and tuple(bias.shape) != (shape[1],):
        raise InputError(f"fp8_linear: bias has shape {tuple(bias.shape)}; expected ({shape[1]},)")
    if residual is not None and (tuple(residual.shape) != shape or residual.dtype != out_dtype):
        raise InputError(
            f"fp8_linear: residual is {residual.dtype} of shape {tuple(residual.shape)}; expected {out_dtype} of "
            f"shape {shape}"
        )
