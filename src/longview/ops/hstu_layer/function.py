"""The layer as one autograd function: what is kept, what is recomputed, and the gradients.

Products of the backward pass are plain and left to the library; kernels do what lies between. With n = the normalised
input, W' = W * gamma and M = d_pre^T n, the projection's gradients need no pass over the tokens of their own:

    dW = M * gamma + d_b beta^T      d_gamma = colsum(W * M)      d_beta = W^T d_b      d_n = d_pre W'

Shapes: T tokens, D width, H heads, G = H·d_v, N columns of U, V, Q and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longview.ops.hstu_layer.eight_bit import output_in_8_bits, project_in_8_bits
from longview.ops.hstu_layer.settings import Attention, LayerParameters, LayerSettings
from longview.ops.hstu_layer.triton_backward import gate_backward, silu_backward_
from longview.ops.hstu_layer.triton_norm import Statistics, normalise_backward
from longview.ops.hstu_layer.triton_output import Gate, gated_output
from longview.ops.hstu_layer.triton_parameters import column_sums, projection_gradients
from longview.ops.hstu_layer.triton_project import Folded, Projected, fold, project
from longview.ops.kernels import on_device_of


@dataclass(frozen=True)
class Call:
    """What a call has besides tensors."""

    settings: LayerSettings
    attention: Attention
    product: torch.dtype  # operands of the matrix products
    rate: float  # dropout; 0 in evaluation
    seed: Tensor | None  # (1,) int64 on the device; None without dropout
    differentiated: bool  # whether a backward pass may follow


class FusedLayer(torch.autograd.Function):
    """`apply(call, z, *parameters)` → z' (T, D) in the dtype of z."""

    @staticmethod
    def forward(ctx: Any, call: Call, z_TD: Tensor, *tensors: Tensor) -> Tensor:
        """Return the output (T, D) of the layer `call` on z (T, D); `tensors` are its parameters."""
        parameters, s = LayerParameters(*tensors), call.settings
        with torch.autocast(z_TD.device.type, enabled=False), on_device_of(z_TD):
            keep = call.differentiated
            keep_pre = keep and not s.recompute_uvqk
            save_normed = keep and not s.recompute_normed
            projected = _projected(z_TD, parameters, call, save_pre=keep_pre, save_normed=save_normed)
            u, *vqk = torch.split(projected.uvqk, s.sizes, dim=1)
            v, q, k = (_heads(x, s) for x in vqk)
            a_TG = call.attention.forward(q, k, v).to(call.product).reshape(len(z_TD), s.gate).contiguous()
            out, gated, a_statistics = _output(z_TD, a_TG, u, parameters, call)
            if keep:
                kept = (projected.uvqk, projected.pre) if keep_pre else (None, None)
                statistics = (*projected.statistics, *a_statistics)
                kept_gated = None if s.recompute_gated else gated
                ctx.save_for_backward(z_TD, a_TG, *statistics, projected.normed, *kept, kept_gated, *tensors)
                ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(d_out.device.type, enabled=False), on_device_of(d_out):
            return _gradients(ctx.call, ctx.saved_tensors, d_out.contiguous())


def _gradients(call: Call, saved: tuple[Tensor, ...], d_out: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `apply`'s arguments; every buffer of the backward pass lives and dies here."""
    z, a, mean, rstd, a_mean, a_rstd, normed, uvqk, pre, gated, *tensors = saved
    parameters, s = LayerParameters(*tensors), call.settings
    folded = _folded(parameters, call)
    if uvqk is None:
        again = _projected(z, parameters, call, save_pre=True, folded=folded, statistics=(mean, rstd))
        uvqk, pre = again.uvqk, again.pre
    d_uvqk = torch.empty_like(uvqk)
    u, *vqk = torch.split(uvqk, s.sizes, dim=1)
    d_u, *d_vqk = torch.split(d_uvqk, s.sizes, dim=1)

    d_product = d_out.to(call.product)
    d_gated = d_product @ parameters.output_weight.to(call.product)
    gate, through = _gate(parameters, call), s.activated == sum(s.sizes) and s.groups == 1
    pre_u = pre[:, : s.gate] if through else None
    gated_by = gate_backward(d_gated, a, u, d_u, gate, (a_mean, a_rstd), gated, pre_u)
    d_output_weight = _transposed_product(d_product, gated_by.gated)
    d_a, gate_sums = gated_by.d_a, gated_by.sums
    del d_gated, gated, gated_by, d_product

    v, q, k = (_heads(x, s) for x in vqk)
    d_v, d_q, d_k = (_heads(x, s) for x in d_vqk)
    if through:  # gradients go on through SiLU where they are made: one pass over d_uvqk less
        pre_v, pre_q, pre_k = (_heads(x, s) for x in torch.split(pre, s.sizes, dim=1)[1:])
        sums = call.attention.backward_before_silu(_heads(d_a, s), q, k, v, (pre_q, pre_k, pre_v), (d_q, d_k, d_v))
    else:
        call.attention.backward(_heads(d_a, s), q, k, v, (d_q, d_k, d_v))
        sums = silu_backward_(d_uvqk, pre)
    del u, vqk, v, q, k, uvqk, d_a
    d_normed = d_uvqk @ folded.weight
    d_z, normed, out_sums = normalise_backward(z, d_normed, d_out, (mean, rstd), normed)
    # With the sums of U's bias the last of the gate's and the first of the projection's, d_bias is in one piece.
    wide = s.gate // s.groups
    added = column_sums(gate_sums, sums, out_sums)
    sizes = [wide, wide, sum(s.sizes), z.shape[1]]
    d_attention_weight, d_attention_bias, d_bias, d_output_bias = torch.split(added, sizes)
    d_weight, d_shift, d_projection = projection_gradients(_transposed_product(d_uvqk, normed), d_bias, parameters)
    gradients = LayerParameters(
        norm_weight=d_weight,
        norm_bias=d_shift,
        uvqk_weight=d_projection,
        uvqk_bias=d_bias,
        attention_norm_weight=d_attention_weight,
        attention_norm_bias=d_attention_bias,
        output_weight=d_output_weight,
        output_bias=d_output_bias,
    )
    return None, d_z, *(g.to(x.dtype) for g, x in zip(gradients.tensors(), tensors, strict=True))


def _projected(
    z_TD: Tensor,
    parameters: LayerParameters,
    call: Call,
    *,
    save_pre: bool,
    save_normed: bool = False,
    folded: Folded | None = None,
    statistics: Statistics | None = None,
) -> Projected:
    """Return U, V, Q and K; what backward calls again has the same bits."""
    s = call.settings
    if s.fp8_projection:
        return project_in_8_bits(z_TD, parameters, s, call.product, save_pre=save_pre)
    folded = folded or _folded(parameters, call)
    return project(
        z_TD, folded, s.activated, s.epsilon, statistics=statistics, save_pre=save_pre, save_normed=save_normed
    )


def _output(
    z_TD: Tensor, a_TG: Tensor, u_TG: Tensor, parameters: LayerParameters, call: Call
) -> tuple[Tensor, Tensor | None, Statistics]:
    """Return the layer's output, the gated rows where there are any of 16 bits or more, and the norm's statistics."""
    gate = _gate(parameters, call)
    if call.settings.fp8_output:
        out, statistics = output_in_8_bits(z_TD, a_TG, u_TG, gate, parameters)
        return out, None, statistics
    weight = parameters.output_weight.to(call.product)
    return gated_output(z_TD, a_TG, u_TG, gate, weight, parameters.output_bias)


def _heads(x_TC: Tensor, settings: LayerSettings) -> Tensor:
    """Return the (T, H, d) view of some of the projection's columns."""
    return x_TC.view(len(x_TC), settings.heads, -1)


def _folded(parameters: LayerParameters, call: Call) -> Folded:
    p = parameters
    return fold(p.uvqk_weight, p.uvqk_bias, p.norm_weight, p.norm_bias, call.product)


def _gate(parameters: LayerParameters, call: Call) -> Gate:
    s = call.settings
    weight, bias = parameters.attention_norm_weight, parameters.attention_norm_bias
    return Gate(weight, bias, s.groups, s.epsilon, call.rate, call.seed)


def _transposed_product(left_TM: Tensor, right_TN: Tensor) -> Tensor:
    """Return left^T right (M, N) in float32, whatever the operands are."""
    if left_TM.is_cuda and left_TM.dtype != torch.float32:
        return torch.mm(left_TM.mT, right_TN, out_dtype=torch.float32)
    return (left_TM.mT @ right_TN).float()
