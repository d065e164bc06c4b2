"""What quantisation means, written out: E4M3 rounding, row-wise FP8 products, asymmetric tables.

Everything is computed in the dtype of its input (float32 or float64), so that float64 says how much of an error is
rounding to 8 bits and how much is arithmetic. The fast paths must give the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 448.0  # of E4M3, and what the largest magnitude of a row is scaled to
MANTISSA_BITS = 3
LEAST_EXPONENT = -6  # of normal numbers; below, numbers are 2^-9 apart
SMALLEST_AMAX = 2.0**-96  # rows smaller than this are scaled as if this were their largest magnitude


def round_e4m3(x: Tensor) -> Tensor:
    """Return the nearest number E4M3 has, ties to even; magnitudes beyond 448 become 448, NaN stays NaN."""
    exponent = torch.frexp(x).exponent - 1
    spacing = torch.ldexp(torch.ones_like(x), exponent.clamp(min=LEAST_EXPONENT) - MANTISSA_BITS)
    rounded = torch.round(x / spacing) * spacing
    return torch.where(x.isnan(), x, rounded.clamp(-LARGEST, LARGEST))


def quantise_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (T, K) that E4M3 has and scales (T,), with x ≈ values * scale."""
    amax_T = x_TK.abs().amax(1).clamp(min=SMALLEST_AMAX)
    return round_e4m3(x_TK * (LARGEST / amax_T)[:, None]), amax_T / LARGEST


def fp8_linear(
    x_TK: Tensor,
    x_scale_T: Tensor,
    w_NK: Tensor,
    w_scale_N: Tensor,
    bias_N: Tensor | None = None,
    residual_TN: Tensor | None = None,
    activated: int = 0,
) -> Tensor:
    """Return SiLU((x * scales) (w * scales)^T + bias) + residual, SiLU in the first `activated` columns."""
    y_TN = (x_TK * x_scale_T[:, None]) @ (w_NK * w_scale_N[:, None]).T
    if bias_N is not None:
        y_TN = y_TN + bias_N
    y_TN = torch.cat([F.silu(y_TN[:, :activated]), y_TN[:, activated:]], dim=1)
    return y_TN if residual_TN is None else y_TN + residual_TN


def normalise_quantise(z_TK: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the quantised rows of LayerNorm(z)."""
    return quantise_rows(F.layer_norm(z_TK, z_TK.shape[1:], gamma, beta, epsilon))


def gate_quantise(
    a_TG: Tensor, u_TG: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float, mask_TG: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the quantised rows of mask * LayerNorm(a) * u; each of `groups` parts of a row is normalised by itself."""
    parts = a_TG.reshape(len(a_TG), groups, -1)
    normed_TG = F.layer_norm(parts, parts.shape[-1:], gamma, beta, epsilon).flatten(1)
    return quantise_rows(normed_TG * u_TG * mask_TG)


def quantise_group(x: Tensor, bits: int) -> tuple[Tensor, float, float]:
    """Return codes (n,), scale and zero of one group of values (n,), with x ≈ zero + scale * code.

    Scale and zero are float16 numbers: zero is the largest below all values, scale the smallest that reaches them all.
    """
    levels = (1 << bits) - 1
    zero = float16_near(float(x.min()), down=True)
    scale = float16_near(float((x.max() - zero) / levels), down=False)
    if scale == 0:
        return torch.zeros_like(x), scale, zero
    return ((x - zero) / scale).round().clamp(0, levels), scale, zero


def float16_near(x: float, *, down: bool) -> float:
    """Return the next float16 that is not above x (`down`) or not below it."""
    near = torch.tensor(x, dtype=torch.float64).half()
    if (float(near) > x) if down else (float(near) < x):
        near = torch.nextafter(near, torch.tensor(-torch.inf if down else torch.inf, dtype=torch.float16))
    return float(near)
