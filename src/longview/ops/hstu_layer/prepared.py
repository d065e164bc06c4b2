"""The layer for inference, again and again with the same weights: what depends on them alone is made once.

The products always run as plain tiles, not as the kernels for many rows (`tiling.staying`): which one runs would depend
on how many rows there are, and a row must have the same bits alone and in company.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longview.ops.hstu_layer import triton_output, triton_project
from longview.ops.hstu_layer.settings import LayerParameters, LayerSettings
from longview.ops.hstu_layer.tiling import roomy
from longview.ops.hstu_layer.triton_output import Gate, gate_forward, output
from longview.ops.hstu_layer.triton_project import Folded, fold, project
from longview.ops.kernels import on_device_of

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q, k (T, H, d_qk) and v (T, H, d_v), views into the projection, to (T, H, d_v)."""


@dataclass(frozen=True, eq=False)
class PreparedLayer:
    """A layer in evaluation mode whose weights do not change any more: four launches a call, and those of `attend`.

    Not for FP8 products, whose weights `fused_layer` quantises.
    """

    settings: LayerSettings
    folded: Folded
    gate: Gate
    output_weight: Tensor  # in the dtype of the products
    output_bias: Tensor

    @classmethod
    def of(cls, parameters: LayerParameters, settings: LayerSettings, product: torch.dtype) -> PreparedLayer:
        """Return the layer with products in `product`; it keeps what it needs, copied where it is cast."""
        if settings.fp8_projection or settings.fp8_output:
            raise ValueError("a layer with FP8 products cannot be prepared: call fused_layer")
        p = LayerParameters(*(x.detach().contiguous() for x in parameters.tensors()))
        with on_device_of(p.norm_weight):
            folded = fold(p.uvqk_weight, p.uvqk_bias, p.norm_weight, p.norm_bias, product)
        gate = Gate(p.attention_norm_weight, p.attention_norm_bias, settings.groups, settings.epsilon, 0.0, None)
        return cls(settings, folded, gate, p.output_weight.to(product), p.output_bias)

    @torch.no_grad()
    def __call__(self, z_TD: Tensor, attend: Attend) -> Tensor:
        """Return (T, width), dtype of `z_TD`: what `fused_layer` gives without dropout."""
        if not len(z_TD):
            return z_TD
        s, product, large = self.settings, self.folded.weight.dtype, roomy(z_TD.device)
        with torch.autocast(z_TD.device.type, enabled=False), on_device_of(z_TD):
            z_TD = z_TD.contiguous()
            tiling = triton_project.default_tiling(product, z_TD.shape[1], large=large)
            uvqk = project(z_TD, self.folded, s.activated, s.epsilon, tiling=tiling).uvqk
            u, v, q, k = torch.split(uvqk, s.sizes, dim=1)
            a_THD = attend(*(x.view(len(x), s.heads, -1) for x in (q, k, v)))
            gated, _ = gate_forward(a_THD.to(product).reshape(len(z_TD), s.gate).contiguous(), u, self.gate)
            tiling = triton_output.default_tiling(product, z_TD.shape[1], large, z_TD.dtype)
            return output(z_TD, gated, self.output_weight, self.output_bias, tiling)
