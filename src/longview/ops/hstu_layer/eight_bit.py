"""The layer's products with 8-bit operands: E4M3, a scale for each row of tokens and each column of the weights.

Rows are quantised where they are made: inside the norm, before the projection, and inside the gate, before the output
product, which adds the residual in its epilogue. Only the forward pass is here. Backward is that of the unquantised
products ("straight through") and finds what it needs in the layer's input, the attention's output and the statistics
of both norms, as it does without FP8.

Source: ULTRA-HSTU, arXiv 2602.16986. Shapes: T tokens, D width, G = H·d_v, N columns of U, V, Q and K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longview.ops.hstu_layer.settings import LayerParameters, LayerSettings
from longview.ops.hstu_layer.triton_norm import Statistics
from longview.ops.hstu_layer.triton_output import Gate
from longview.ops.hstu_layer.triton_project import Projected
from longview.ops.quantisation import triton_rows
from longview.ops.quantisation.fp8 import product_kernels


def project_in_8_bits(
    z_TD: Tensor, parameters: LayerParameters, settings: LayerSettings, dtype: torch.dtype, *, save_pre: bool
) -> Projected:
    """Return SiLU(Linear(LayerNorm(z))) in `dtype`, as `triton_project.project` does; no normalised rows are kept."""
    p, rows, columns = parameters, len(z_TD), sum(settings.sizes)
    values, scale, statistics = triton_rows.normalise_quantise(z_TD, p.norm_weight, p.norm_bias, settings.epsilon)
    pre = torch.empty(rows, settings.activated, dtype=dtype, device=z_TD.device) if save_pre else None
    kernels = product_kernels(z_TD.device, columns, z_TD.shape[1], residual=False, out_dtype=dtype)
    weight = triton_rows.quantise(p.uvqk_weight)
    uvqk = kernels.product(values, scale, *weight, p.uvqk_bias, None, settings.activated, dtype, pre=pre)
    return Projected(uvqk, pre, None, statistics)


def output_in_8_bits(
    z_TD: Tensor, a_TG: Tensor, u_TG: Tensor, gate: Gate, parameters: LayerParameters
) -> tuple[Tensor, Statistics]:
    """Return z + Linear(dropout(Norm(a) * u)) (T, D) in the dtype of z, and the statistics of the norm."""
    p = parameters
    values, scale, statistics = triton_rows.gate_quantise(
        a_TG, u_TG, gate.weight, gate.bias, gate.groups, gate.epsilon, gate.rate, gate.seed
    )
    kernels = product_kernels(z_TD.device, z_TD.shape[1], a_TG.shape[1], residual=True, out_dtype=z_TD.dtype)
    weight = triton_rows.quantise(p.output_weight)
    return kernels.product(values, scale, *weight, p.output_bias, z_TD, 0, z_TD.dtype), statistics
