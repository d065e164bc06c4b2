"""FP8 on a machine without it: the same 8-bit numbers, float32 sums, plain torch.

Fast enough to train and evaluate small models, so that what FP8 does to a metric is known before a GPU is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.errors import InputError
from longview.ops.dropout.counter import dropout_mask
from longview.ops.quantisation.reference import LARGEST, SMALLEST_AMAX

Statistics = tuple[Tensor, Tensor]


def quantise(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 rows (T, K) and scales (T,) float32.

    Raises:
        InputError: an infinity or a NaN, with its row.
    """
    x_TK = x_TK.float()
    amax_T = x_TK.abs().amax(1)
    if not bool(amax_T.isfinite().all()):
        row = int((~amax_T.isfinite()).nonzero()[0, 0])
        raise InputError(f"FP8: row {row} of {len(x_TK)} has an infinity or a NaN, which no scale can bring to 8 bits")
    amax_T = amax_T.clamp(min=SMALLEST_AMAX)
    scaled = x_TK * (LARGEST / amax_T)[:, None]
    return scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), amax_T / LARGEST


def normalise_quantise(z_TK: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Statistics]:
    """Return E4M3 rows of LayerNorm(z), scales, and mean and 1/deviation of z's rows."""
    centred, statistics = _normalise(z_TK.float(), epsilon)
    return *quantise(torch.addcmul(beta.float(), centred, gamma.float())), statistics


def gate_quantise(
    a_TG: Tensor,
    u_TG: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    rate: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Statistics]:
    """Return E4M3 rows of mask * norm(a) * u, scales, and the statistics (T·groups,) of a's parts."""
    parts = a_TG.float().reshape(len(a_TG) * groups, -1)
    normed, statistics = _normalise(parts, epsilon)
    gated = torch.addcmul(beta.float(), normed, gamma.float()).view_as(a_TG) * u_TG.float()
    if rate and seed is not None:
        gated *= dropout_mask(int(seed), len(a_TG), a_TG.shape[1], rate).to(gated)
    return *quantise(gated), statistics


def product(
    x_TK: Tensor,
    x_scale_T: Tensor,
    w_NK: Tensor,
    w_scale_N: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activated: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return SiLU(scales * (x w^T) + bias) + residual (T, N) with sums in float32."""
    y_TN = x_TK.float() @ w_NK.float().T
    y_TN *= x_scale_T[:, None]
    y_TN *= w_scale_N
    if bias is not None:
        y_TN += bias.float()
    if activated:
        F.silu(y_TN[:, :activated], inplace=True)
    if residual is not None:
        y_TN += residual.float()
    return y_TN.to(out_dtype)


def _normalise(x_TK: Tensor, epsilon: float) -> tuple[Tensor, Statistics]:
    mean = x_TK.mean(1, keepdim=True)
    centred = x_TK - mean
    rstd = (centred.square().mean(1, keepdim=True) + epsilon).rsqrt()
    return centred * rstd, (mean.squeeze(1), rstd.squeeze(1))
