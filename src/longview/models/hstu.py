"""The HSTU layer and stack.

    X = Norm(Z);  U, Q, K, V = SiLU(Linear(X));  A = attention(Q, K, V);  Z' = Z + Linear(Norm(A) * U)

Sources: HSTU, arXiv 2402.17152; ULTRA-HSTU, arXiv 2602.16986 (pointwise semi-local attention, no bias).
Shape suffixes: T tokens of all sequences, B sequences, H heads, D per-head dimension.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.errors import InputError
from longview.models.kernel_blocks import KernelBlocks
from longview.models.layout import Extension, Hidden, Layout
from longview.ops.attention import MaskSpec, newest_rows_attention, semi_local_attention
from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.newest import newest_row_attention, newest_rows
from longview.ops.dropout import dropout
from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer, why_off

__all__ = ["EPSILON", "AttentionConfig", "HSTULayer", "HSTUStack", "Hidden", "LayerConfig", "Layout"]

EPSILON = 1e-6


class AttentionConfig(Config):
    """Which keys a history event sees (`MaskSpec`), and the relative bias added before SiLU."""

    local_window: int = Field(default=0, ge=0, description="newest keys a row sees, itself included; 0 = all")
    global_size: int = Field(default=0, ge=0, description="prefix keys every row sees, or newest rows that see all")
    global_mode: Literal["prefix", "recent"] = "prefix"
    target_scope: Literal["full", "semi_local"] = Field(
        default="full", description="a candidate sees all history, or the prefix and the window (constant-size state)"
    )
    position_bias: bool = Field(default=False, description="learned bias by distance")
    time_bias: bool = Field(default=False, description="learned bias by log-bucketed time difference")
    num_time_buckets: int = Field(default=64, ge=2)
    blocks: KernelBlocks = KernelBlocks()

    def mask(self) -> MaskSpec:
        return MaskSpec(
            local_window=self.local_window,
            global_size=self.global_size,
            global_mode=self.global_mode,
            target_scope=self.target_scope,
        )


class LayerConfig(Config):
    """One HSTU layer; None stands for the derived value named in the description."""

    qk_dim: int | None = Field(default=None, ge=1, description="per head; default width / heads")
    v_dim: int | None = Field(default=None, ge=1, description="per head; default width / heads")
    activation: Literal["uvqk", "u"] = Field(default="uvqk", description="SiLU on U, V, Q and K, or on U alone")
    output: Literal["gated", "concat"] = Field(default="gated", description="U·Norm(A), or [U, A, U·Norm(A)]")
    norm: Literal["row", "head"] = Field(default="row", description="normalise A over all heads or per head")
    alpha: Literal["sqrt", "linear"] = Field(default="sqrt", description="scores times 1/√d_qk or 1/d_qk")
    scale_length: float | None = Field(default=None, gt=0, description="SiLU scores / this; default max_length")
    recompute: Literal["all", "cheap", "none"] = Field(
        default="cheap",
        description="on a GPU, what backward computes again: all, all but the projection, or nothing",
    )


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
        for linear in (self.uvqk, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
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
        kind = x_TD.device.type
        product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TD.dtype
        return why_off(self.fused, x_TD.shape[1], x_TD.device, product)

    def _fused(self, x_TD: Tensor, layout: Layout) -> Tensor:
        from longview.ops.attention.triton_attention import LayerAttention

        parameters = LayerParameters(
            self.norm.weight,
            self.norm.bias,
            self.uvqk.weight,
            self.uvqk.bias,
            self.norm_attention.weight,
            self.norm_attention.bias,
            self.output.weight,
            self.output.bias,
        )
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
        return fused_layer(x_TD, parameters, self.fused, attention, self.training)

    def extend(
        self, x_TD: Tensor, keys_THD: Tensor, values_THD: Tensor, extension: Extension
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows that `forward` gives tokens behind cached ones, and the keys and values of all of them.

        x_TD: the new tokens alone. keys_THD, values_THD: the cached ones, from `forward_keeping`. No gradient.
        """
        self._check_targets(extension.target_lengths)
        u, v, q, k = self._project(x_TD)
        keys, values = extension.join(keys_THD, self._heads(k)), extension.join(values_THD, self._heads(v))
        settings: dict[str, Any] = {
            "alpha": self.alpha,
            "scale_length": self.scale_length,
            "context_lengths": extension.context_lengths,
            "target_lengths": extension.target_lengths,
        }
        given = (self._heads(q).to(keys.dtype), keys, values, extension.query_offsets, extension.offsets, self.mask)
        if self.position_bias is None and self.time_bias is None:
            a_THD = newest_rows_attention(*given, **settings)
        else:
            bias = RelativeBias(self.position_bias, self.time_bias, extension.timestamps)
            a_THD = newest_rows(*given, **settings, bias=bias, places=extension.places)
        return x_TD + self._mix(a_THD, u), keys, values

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
        weights, biases = torch.split(self.uvqk.weight, self.sizes), torch.split(self.uvqk.bias, self.sizes)
        rows = normed[newest]
        u, q = (F.linear(rows, weights[i], biases[i]) for i in (0, 2))
        v, k = (F.linear(normed, weights[i], biases[i]) for i in (1, 3))
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
        uvqk = self.uvqk(self.norm(x_TD))
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
        return self.output(dropout(gated, self.dropout, self.training))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, x.shape[1] // self.heads)

    def _bias(self, layout: Layout) -> RelativeBias | None:
        if self.position_bias is None and self.time_bias is None:
            return None
        return RelativeBias(self.position_bias, self.time_bias, layout.timestamps)


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

    def hidden(self, x_TD: Tensor, layout: Layout) -> Hidden:
        """Return `forward` as every stack gives it: all tokens are kept."""
        return Hidden(self(x_TD, layout), layout)

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width), the newest history row of each sequence; the last layer computes nothing else."""
        *before, last = self.layers
        for layer in before:
            x_TD = layer(x_TD, layout)
        return last.newest(x_TD, layout)  # type: ignore[operator,no-any-return]
