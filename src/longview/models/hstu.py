"""The HSTU layer and stack.

    X = Norm(Z);  U, Q, K, V = SiLU(Linear(X));  A = attention(Q, K, V);  Z' = Z + Linear(Norm(A) * U)

Sources: HSTU, arXiv 2402.17152; ULTRA-HSTU, arXiv 2602.16986 (pointwise semi-local attention, no bias).
Shape suffixes: T tokens of all sequences, B sequences, H heads, D per-head dimension.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longview.errors import InputError
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.layer_start import start_as_look_up, start_at_random
from longview.models.layout import Extension, Hidden, Layout
from longview.models.products import Precision, in_8_bits, linear
from longview.ops.attention import newest_rows_attention, semi_local_attention
from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.newest import newest_row_attention, newest_rows
from longview.ops.dropout import dropout
from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer, why_off

if TYPE_CHECKING:
    from longview.ops.hstu_layer.prepared import PreparedLayer

__all__ = ["EPSILON", "HSTULayer", "HSTUStack", "Hidden", "Layout"]

EPSILON = 1e-6


class HSTULayer(nn.Module):
    """One layer over a jagged batch."""

    def __init__(
        self, width: int, heads: int, max_length: int, dropout: float, layer: LayerConfig, attention: AttentionConfig
    ) -> None:
        super().__init__()
        self.config, self.attention = layer, attention
        self.heads = heads
        self.d_qk = layer.qk_dim or width // heads
        self.d_v = layer.v_dim or width // heads
        self.alpha = 1 / math.sqrt(self.d_qk) if layer.alpha == "sqrt" else 1 / self.d_qk
        self.scale_length = layer.scale_length or float(max_length)
        self.mask, self.blocks = attention.mask(), attention.blocks.chosen()
        gate = heads * self.d_v
        self.sizes = [gate, gate, heads * self.d_qk, heads * self.d_qk]
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.uvqk = nn.Linear(width, sum(self.sizes))
        self.norm_attention = nn.LayerNorm(gate if layer.norm == "row" else self.d_v, eps=EPSILON)
        self.output = nn.Linear(gate * (3 if layer.output == "concat" else 1), width)
        self.dropout = dropout
        self.precision: Precision = layer.precision
        self.fused = LayerSettings(
            heads,
            self.d_qk,
            self.d_v,
            activation=layer.activation,
            norm=layer.norm,
            dropout=dropout,
            epsilon=EPSILON,
            recompute_normed=layer.recompute != "none",
            recompute_uvqk=layer.recompute == "all",
            recompute_gated=layer.recompute != "none",
        )
        start_at_random(self.uvqk, self.output)
        if layer.start == "mimetic":
            start_as_look_up(self.uvqk, self.output, self.sizes, self.d_qk, self.alpha)
        # A first look at all distances alike: the bias starts at zero.
        self.position_bias = nn.Parameter(torch.zeros(heads, max_length)) if attention.position_bias else None
        self.time_bias = nn.Parameter(torch.zeros(heads, attention.num_time_buckets)) if attention.time_bias else None

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (T, width).

        Raises:
            InputError: targets in a layer with a bias by distance: a candidate's score would depend on its place.
        """
        if self.why_not_fused(x_TD) is None:
            return self._fused(x_TD, layout)
        return self.forward_keeping(x_TD, layout)[0]

    def forward_keeping(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Return (T, width) and the keys (T, H, d_qk) and values (T, H, d_v) that later tokens will attend to."""
        self._check_targets(layout.target_lengths)
        u, v, q, k = self._project(x_TD)
        k_THD, v_THD = self._heads(k), self._heads(v)
        a_THD = semi_local_attention(
            self._heads(q),
            k_THD,
            v_THD,
            layout.offsets,
            self.mask,
            alpha=self.alpha,
            scale_length=self.scale_length,
            context_lengths=layout.context_lengths,
            target_lengths=layout.target_lengths,
            bias=self._bias(layout),
            max_length=layout.max_length,
            blocks=self.blocks,
        )
        return x_TD + self._mix(a_THD, u), k_THD, v_THD

    def why_not_fused(self, x_TD: Tensor) -> str | None:
        """Return why `forward` runs operation by operation on `x_TD`, or None where it is one fused operation."""
        if x_TD.device.type != "cuda":
            return f"the fused layer is written for GPUs, and the tensors are on {x_TD.device.type}"
        if self.config.output != "gated":
            return f"output {self.config.output!r} is not fused"
        if self.position_bias is not None or self.time_bias is not None:
            return "a relative bias is not fused"
        return why_off(self.fused, x_TD.shape[1], x_TD.device, product_dtype(x_TD))

    def why_not_prepared(self, x_TD: Tensor, kept: torch.dtype) -> str | None:
        """Return why tokens like `x_TD` cannot go through `prepared` beside keys and values of dtype `kept`, or None
        where they can."""
        reason, product = self.why_not_fused(x_TD), product_dtype(x_TD)
        if reason is not None:
            return reason
        if self.precision != "run":
            return f"layers of precision {self.precision} go operation by operation"
        return None if kept == product else f"keys and values of the state are {kept}, and products here {product}"

    def _settings(self, x_TD: Tensor) -> LayerSettings:
        projection, output = (in_8_bits(x_TD, product, self.precision) for product in (self.uvqk, self.output))
        return replace(self.fused, fp8_projection=projection, fp8_output=output)

    def prepared(self, product: torch.dtype) -> PreparedLayer:
        """Return the layer with its weights as they are now, for inference with products in `product`."""
        from longview.ops.hstu_layer.prepared import PreparedLayer

        return PreparedLayer.of(self._tensors(), self.fused, product)

    def _tensors(self) -> LayerParameters:
        parts = (self.norm, self.uvqk, self.norm_attention, self.output)
        return LayerParameters(*(x for part in parts for x in (part.weight, part.bias)))

    def _fused(self, x_TD: Tensor, layout: Layout) -> Tensor:
        from longview.ops.attention.triton_attention import LayerAttention

        attention = LayerAttention.of(
            layout.offsets,
            x_TD.shape[0],
            self.mask,
            self.alpha,
            self.scale_length,
            context_lengths=layout.context_lengths,
            target_lengths=layout.target_lengths,
            chosen=self.blocks,
        )
        return fused_layer(x_TD, self._tensors(), self._settings(x_TD), attention, self.training)

    def extend(self, x_TD: Tensor, keys_THD: Tensor, values_THD: Tensor, extension: Extension) -> Tensor:
        """Return the rows that `forward` gives tokens behind cached ones; no gradient.

        x_TD: the new tokens alone. keys_THD, values_THD: of all tokens, the cached ones from `forward_keeping`; those
        of the new ones are written here.
        """
        self._check_targets(extension.target_lengths)

        def attend(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
            keys_THD.index_copy_(0, extension.new_rows, k_THD.to(keys_THD.dtype))
            values_THD.index_copy_(0, extension.new_rows, v_THD.to(values_THD.dtype))
            return self._newest_rows(q_THD.to(keys_THD.dtype), keys_THD, values_THD, extension)

        if self.why_not_prepared(x_TD, keys_THD.dtype) is None:
            return self.prepared(product_dtype(x_TD))(x_TD, attend)
        u, v, q, k = self._project(x_TD)
        return x_TD + self._mix(attend(self._heads(q), self._heads(k), self._heads(v)), u)

    def _newest_rows(self, q_THD: Tensor, keys_THD: Tensor, values_THD: Tensor, extension: Extension) -> Tensor:
        settings: dict[str, Any] = {
            "alpha": self.alpha,
            "scale_length": self.scale_length,
            "context_lengths": extension.context_lengths,
            "target_lengths": extension.target_lengths,
        }
        given = (q_THD, keys_THD, values_THD, extension.query_offsets, extension.offsets, self.mask)
        if self.position_bias is None and self.time_bias is None:
            return newest_rows_attention(*given, **settings)
        bias = RelativeBias(self.position_bias, self.time_bias, extension.timestamps)
        return newest_rows(*given, **settings, bias=bias, places=extension.places)

    def _check_targets(self, target_lengths: Tensor | None) -> None:
        if target_lengths is not None and self.position_bias is not None:
            raise InputError(
                "attention.position_bias counts the distance to each candidate, so scores would depend on the order "
                "of the candidates: set model.attention.position_bias false where candidates are scored"
            )

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width): the row that `forward` gives the newest history event of each sequence, at O(T) cost."""
        newest = layout.newest_rows()
        normed = self.norm(x_TD)
        ends = list(itertools.accumulate(self.sizes, initial=0))
        columns = [slice(*pair) for pair in itertools.pairwise(ends)]
        rows = normed[newest]
        u, q = (linear(rows, self.uvqk, self.precision, columns[i]) for i in (0, 2))
        v, k = (linear(normed, self.uvqk, self.precision, columns[i]) for i in (1, 3))
        u = F.silu(u)
        if self.config.activation == "uvqk":
            v, q, k = F.silu(v), F.silu(q), F.silu(k)
        a_BHD = newest_row_attention(
            self._heads(q),
            self._heads(k),
            self._heads(v),
            layout.offsets,
            self.mask,
            alpha=self.alpha,
            scale_length=self.scale_length,
            bias=self._bias(layout),
            context_lengths=layout.context_lengths,
            target_lengths=layout.target_lengths,
        )
        return x_TD[newest] + self._mix(a_BHD, u)

    def _project(self, x_TD: Tensor) -> tuple[Tensor, ...]:
        uvqk = linear(self.norm(x_TD), self.uvqk, self.precision)
        if self.config.activation == "uvqk":
            return torch.split(F.silu(uvqk), self.sizes, dim=-1)
        u, v, q, k = torch.split(uvqk, self.sizes, dim=-1)
        return F.silu(u), v, q, k

    def _mix(self, a_THD: Tensor, u: Tensor) -> Tensor:
        flat = a_THD.flatten(1)
        normed = self.norm_attention(a_THD if self.config.norm == "head" else flat).view_as(flat)
        gated = normed * u
        if self.config.output == "concat":
            gated = torch.cat([u, flat, gated], dim=-1)
        return linear(dropout(gated, self.dropout, self.training), self.output, self.precision)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, x.shape[1] // self.heads)

    def _bias(self, layout: Layout) -> RelativeBias | None:
        if self.position_bias is None and self.time_bias is None:
            return None
        return RelativeBias(self.position_bias, self.time_bias, layout.timestamps)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the products of rows like `x` here and now."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class HSTUStack(nn.Module):
    """Layers one after another."""

    def __init__(self, layers: list[HSTULayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (T, width)."""
        for layer in self.layers:
            x_TD = layer(x_TD, layout)
        return x_TD

    def hstu_layers(self) -> list[HSTULayer]:
        """Return the layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, HSTULayer)]

    def hidden(self, x_TD: Tensor, layout: Layout) -> Hidden:
        """Return `forward` as every stack gives it: all tokens are kept."""
        return Hidden(self(x_TD, layout), layout)

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width), the newest history row of each sequence; the last layer computes nothing else."""
        *before, last = self.layers
        for layer in before:
            x_TD = layer(x_TD, layout)
        return last.newest(x_TD, layout)  # type: ignore[operator,no-any-return]
