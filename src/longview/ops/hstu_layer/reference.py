"""The layer written out: obvious, any dtype, differentiated by autograd. The fused path must agree with it.

    X = LayerNorm(Z);  U, V, Q, K = SiLU(Linear(X));  A = attention(Q, K, V);  Z' = Z + Linear(mask * LayerNorm(A) * U)

Sources: HSTU, arXiv 2402.17152; ULTRA-HSTU, arXiv 2602.16986.
Shape suffixes: T tokens, D width, H heads, G = H·d_v columns of U and of the attention's output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.ops.hstu_layer.settings import LayerParameters, LayerSettings
from longview.ops.quantisation import reference as quantised

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def reference_layer(
    z_TD: Tensor, parameters: LayerParameters, settings: LayerSettings, attend: Attend, mask_TG: Tensor | None = None
) -> Tensor:
    """Return (T, D). `attend(q, k, v)` maps (T, H, d) tensors to (T, H, d_v); `mask_TG` holds 0 or 1/(1 - rate).

    Products in 8 bits have the gradients of those of the unquantised operands.
    """
    p, s = parameters, settings
    x_TD = F.layer_norm(z_TD, z_TD.shape[1:], p.norm_weight, p.norm_bias, s.epsilon)
    u_TG, v, q, k = torch.split(_linear(x_TD, p.uvqk_weight, p.uvqk_bias, s.fp8_projection), s.sizes, dim=1)
    u_TG = F.silu(u_TG)
    if s.activation == "uvqk":
        v, q, k = F.silu(v), F.silu(q), F.silu(k)
    a_THD = attend(*(x.reshape(len(x), s.heads, -1) for x in (q, k, v)))
    parts = a_THD if s.norm == "head" else a_THD.flatten(1)
    normed_TG = F.layer_norm(parts, parts.shape[-1:], p.attention_norm_weight, p.attention_norm_bias, s.epsilon)
    gated_TG = normed_TG.reshape(u_TG.shape) * u_TG
    if mask_TG is not None:
        gated_TG = gated_TG * mask_TG
    return z_TD + _linear(gated_TG, p.output_weight, p.output_bias, s.fp8_output)


def _linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor, fp8: bool) -> Tensor:
    plain = F.linear(x_TK, weight_NK, bias_N)
    if not fp8:
        return plain
    x, weight = quantised.quantise_rows(x_TK.detach()), quantised.quantise_rows(weight_NK.detach())
    return plain + (quantised.fp8_linear(*x, *weight, bias_N) - plain).detach()
