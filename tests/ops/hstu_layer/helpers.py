"""Random layers, an attention small enough to write out, and a layer's output and gradients as one mapping."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer
from longview.ops.hstu_layer.reference import reference_layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("z", *(field.name for field in fields(LayerParameters)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal pointwise attention over one sequence, at least in float32; the 1 keeps rows away from zero, where
    normalising them would be ill-conditioned."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("ihd,jhd->hij", q.to(wide), k.to(wide)) / q.shape[2] ** 0.5
    weights = (torch.nn.functional.silu(scores) + 1).tril() / 8
    return torch.einsum("hij,jhd->ihd", weights, v.to(wide)).to(v.dtype)


class StandIn:
    """`attend` behind the protocol; poisons nothing it should not write and checks what it is given."""

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        return attend(q_THD, k_THD, v_THD)

    def backward(
        self, d_a_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, out: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q_THD, k_THD, v_THD)]
            found = torch.autograd.grad(attend(*leaves), leaves, d_a_THD)
        for into, gradient in zip(out, found, strict=True):
            into.copy_(gradient)

    def backward_before_silu(
        self,
        d_a_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        before: tuple[Tensor, Tensor, Tensor],
        out: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        self.backward(d_a_THD, q_THD, k_THD, v_THD, out)
        for into, pre in zip(out, before, strict=True):
            x = pre.to(torch.promote_types(pre.dtype, torch.float32))
            share = torch.sigmoid(x)
            into.mul_((share * (1 + x * (1 - share))).to(into.dtype))
        d_q, d_k, d_v = out
        return torch.cat([x.float().flatten(1) for x in (d_v, d_q, d_k)], dim=1)


@dataclass(frozen=True)
class Layer:
    """A layer's tensors in float64, its settings, an input (T, width) and the gradient of the output."""

    parameters: LayerParameters
    settings: LayerSettings
    z: Tensor
    d_out: Tensor

    def with_settings(self, **changes: Any) -> Layer:
        return replace(self, settings=replace(self.settings, **changes))

    def rounded(self, stream: torch.dtype, weights: torch.dtype) -> Layer:
        """Return the same layer with the values that these dtypes can hold, so that all versions get equal inputs."""
        kept = LayerParameters(*(x.to(weights).double() for x in self.parameters.tensors()))
        return replace(self, parameters=kept, z=self.z.to(stream).double(), d_out=self.d_out.to(stream).double())

    def leaves(self, stream: torch.dtype, weights: torch.dtype) -> list[Tensor]:
        dtypes = [stream] + [weights] * len(self.parameters.tensors())
        return [
            x.to(DEVICE, dtype).detach().requires_grad_()
            for x, dtype in zip((self.z, *self.parameters.tensors()), dtypes, strict=True)
        ]

    def fused(
        self, stream: torch.dtype = torch.float32, weights: torch.dtype | None = None, training: bool = True
    ) -> dict[str, Tensor]:
        z, *rest = leaves = self.leaves(stream, weights or stream)
        out = fused_layer(z, LayerParameters(*rest), self.settings, StandIn(), training)
        return self._all(out, leaves)

    def reference(
        self, stream: torch.dtype = torch.float64, weights: torch.dtype | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        z, *rest = leaves = self.leaves(stream, weights or stream)
        kept = None if mask is None else mask.to(z)
        return self._all(reference_layer(z, LayerParameters(*rest), self.settings, attend, kept), leaves)

    def _all(self, out: Tensor, leaves: list[Tensor]) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(out, leaves, self.d_out.to(out))
        return {"out": out.detach(), **dict(zip(NAMES, gradients, strict=True))}


def layer(
    tokens: int = 130, width: int = 32, heads: int = 2, d_qk: int = 8, d_v: int = 16, *, seed: int = 0, **options: Any
) -> Layer:
    """Return a random layer; the input's rows have means far from zero, which normalising must take off."""
    source = torch.Generator().manual_seed(seed)
    settings = LayerSettings(heads, d_qk, d_v, **options)

    def normal(*shape: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64) * scale + around

    columns, gate = sum(settings.sizes), settings.gate
    normed = gate // settings.groups
    parameters = LayerParameters(
        normal(width, scale=0.3, around=1.0),
        normal(width, scale=0.3),
        normal(columns, width, scale=1.5 * width**-0.5),
        normal(columns, scale=0.3),
        normal(normed, scale=0.3, around=1.0),
        normal(normed, scale=0.3),
        normal(width, gate, scale=gate**-0.5),
        normal(width, scale=0.3),
    )
    z = normal(tokens, width) + normal(tokens, 1, scale=2.0)
    return Layer(parameters, settings, z, normal(tokens, width))


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return ||found - expected|| / ||expected|| for each name."""
    return {
        name: float((found[name].double() - expected[name]).norm() / expected[name].norm().clamp(min=1e-30))
        for name in expected
    }
