"""Semi-local attention by Triton kernels: gradients, and the registration as a custom operator.

`triton_launch.py` holds the bare passes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_launch import (
    Call,
    Tables,
    attention_backward_before_silu_into,
    attention_backward_into,
    attention_forward_into,
    batch_of,
)
from longview.ops.attention.triton_tuning import SHIPPED, Blocks, ChosenBlocks


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The passes of one batch for a fused layer, which owns the buffers; methods as in `hstu_layer.Attention`."""

    call: Call

    @classmethod
    def of(
        cls,
        offsets: Tensor,
        total: int,
        mask: MaskSpec,
        alpha: float,
        scale_length: float,
        *,
        context_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
        chosen: ChosenBlocks = SHIPPED,
    ) -> LayerAttention:
        """Return the passes of a batch of `total` tokens; arguments as of `semi_local_attention`."""
        batch = batch_of(offsets, total, mask, context_lengths, target_lengths)
        return cls(Call(batch, alpha, scale_length, chosen=chosen))

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        out = torch.empty(v_THD.shape, dtype=v_THD.dtype, device=v_THD.device)
        attention_forward_into(out, q_THD, k_THD, v_THD, self.call)
        return out

    def backward(
        self, d_a_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, out: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        attention_backward_into(out, d_a_THD, q_THD, k_THD, v_THD, self.call)

    def backward_before_silu(
        self,
        d_a_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        before: tuple[Tensor, Tensor, Tensor],
        out: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        return attention_backward_before_silu_into(out, before, d_a_THD, q_THD, k_THD, v_THD, self.call)


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    bias: RelativeBias | None = None,
    chosen: ChosenBlocks = SHIPPED,
) -> Tensor:
    """Return `semi_local_attention` of tensors on a GPU (or, in Triton's interpreter, on the CPU); differentiable."""
    bias = bias or RelativeBias()
    stamps = None if bias.time is None else bias.timestamps
    found: Tensor = torch.ops.longview.semi_local_attention(
        q, k, v, offsets, _encoded(mask, chosen), alpha, scale_length, context_lengths, target_lengths,
        bias.position, bias.time, stamps,
    )  # fmt: skip
    return found


def triton_newest_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """Return `newest_rows_attention` of tensors on a GPU; no gradient."""
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=v.dtype, device=v.device)
    batch = batch_of(offsets, k.shape[0], mask, context_lengths, target_lengths, query_offsets, q.shape[0])
    attention_forward_into(out, q, k, v, Call(batch, alpha, scale_length))
    return out


@torch.library.custom_op("longview::semi_local_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: str,
    alpha: float,
    scale_length: float,
    context_lengths: Tensor | None,
    target_lengths: Tensor | None,
    position: Tensor | None,
    time: Tensor | None,
    timestamps: Tensor | None,
) -> Tensor:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    spec, chosen = _decoded(mask)
    batch = batch_of(offsets, q.shape[0], spec, context_lengths, target_lengths)
    tables = Tables.of(RelativeBias(position, time, timestamps))
    attention_forward_into(out, q, k, v, Call(batch, alpha, scale_length, tables, chosen))
    return out


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty(v.shape, dtype=v.dtype, device=v.device)


@torch.library.custom_op("longview::semi_local_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: str,
    alpha: float,
    scale_length: float,
    context_lengths: Tensor | None,
    target_lengths: Tensor | None,
    position: Tensor | None,
    time: Tensor | None,
    timestamps: Tensor | None,
) -> list[Tensor]:
    d_out, q, k, v = (_rows_contiguous(x) for x in (d_out, q, k, v))
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    spec, chosen = _decoded(mask)
    batch = batch_of(offsets, q.shape[0], spec, context_lengths, target_lengths)
    tables = Tables.of(RelativeBias(position, time, timestamps))
    found = attention_backward_into((d_q, d_k, d_v), d_out, q, k, v, Call(batch, alpha, scale_length, tables, chosen))
    given = zip(found, (position, time), strict=True)
    return [d_q, d_k, d_v, *(d.to(x.dtype) for d, x in given if d is not None and x is not None)]


@_attention_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
    position, time = rest[6:8]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, position, time) if x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, mask, alpha, scale_length, *rest = inputs
    ctx.save_for_backward(q, k, v, offsets, *rest)
    ctx.settings = mask, alpha, scale_length


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, *rest = ctx.saved_tensors
    found = torch.ops.longview.semi_local_attention_backward(d_out, q, k, v, offsets, *ctx.settings, *rest)
    d_q, d_k, d_v, *tables = found
    left = iter(tables)
    d_position, d_time = (None if x is None else next(left) for x in rest[2:4])
    return (d_q, d_k, d_v, *[None] * 6, d_position, d_time, None)


_attention.register_autograd(_differentiate, setup_context=_save)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


@lru_cache(maxsize=64)
def _encoded(mask: MaskSpec, chosen: ChosenBlocks) -> str:
    return json.dumps([dataclasses.asdict(mask), dataclasses.asdict(chosen)])


@lru_cache(maxsize=64)
def _decoded(text: str) -> tuple[MaskSpec, ChosenBlocks]:
    mask, chosen = json.loads(text)
    return MaskSpec(**mask), ChosenBlocks(**{name: x and Blocks(**x) for name, x in chosen.items()})
