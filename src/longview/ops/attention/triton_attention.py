"""Semi-local attention by Triton kernels: launches, gradients, and the registration as a custom op.

`attention_forward_into` and `attention_backward_into` are the bare passes, for callers that hold their own buffers;
`triton_attention` is the differentiable form. Inputs may be slices of one projection: any token and head stride, the
last dimension contiguous.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_backward import (
    attention_backward_keys,
    attention_backward_rows,
    attention_backward_sum,
)
from longview.ops.attention.triton_forward import attention_forward
from longview.ops.attention.triton_tuning import Blocks, Kernel, blocks_for
from longview.ops.attention.work import KeyItems, Shape, key_items, row_items
from longview.ops.kernels import interpreted, padded_dim

SLICE = 2048  # rows of a slice of a block of keys that all rows see
SUM_ROWS = 16  # keys that one program adds up


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch and mask: its lengths, and the lists of work made from them, which all layers share."""

    shape: Shape
    mask: MaskSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {})
        object.__setattr__(self, "_keys", {})

    def rows(self, size: int) -> Tensor:
        made: dict[int, Tensor] = self._rows  # type: ignore[attr-defined]
        if size not in made:
            made[size] = row_items(self.shape, self.mask, size)
        return made[size]

    def keys(self, size: int, rows: int) -> KeyItems:
        made: dict[tuple[int, int], KeyItems] = self._keys  # type: ignore[attr-defined]
        if (size, rows) not in made:
            made[size, rows] = key_items(self.shape, self.mask, size, rows, SLICE)
        return made[size, rows]


_recent: OrderedDict[tuple[Any, ...], tuple[Batch, tuple[Any, ...]]] = OrderedDict()


def batch_of(
    offsets: Tensor,
    total: int,
    mask: MaskSpec,
    context: Tensor | None,
    targets: Tensor | None,
    query_offsets: Tensor | None = None,
    total_queries: int = 0,
) -> Batch:
    """Return the work of a batch; the same one for the same (unchanged) tensors, so that layers make it once."""
    given = (offsets, context, targets, query_offsets)
    key = (total, total_queries, mask, *((None if x is None else (id(x), x._version)) for x in given))
    found = _recent.get(key)
    if found is not None and all(x is None or ref() is x for x, ref in zip(given, found[1], strict=True)):
        return found[0]
    if offsets.device.type == "cuda":  # values cannot be looked at without waiting: the device stops on bad ones
        fits = (offsets[0] == 0) & (offsets[-1] == total) & (offsets.diff() >= 0).all()
        torch._assert_async(fits, f"attention: offsets must rise from 0 to {total}, the tokens of q")
    longest = 0 if context is None or context.numel() == 0 else int(context.max())
    batch = Batch(Shape(offsets, context, targets, total, longest, query_offsets, total_queries), mask)
    _recent[key] = batch, tuple(None if x is None else weakref.ref(x) for x in given)
    while len(_recent) > 16:
        _recent.popitem(last=False)
    return batch


def attention_forward_into(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, alpha: float, scale_length: float
) -> None:
    """Write attention of `q, k` (T, H, D_qk) and `v` (T, H, D_v) to `out` (T, H, D_v)."""
    blocks = _blocks("forward", batch.mask, q, v)
    items = batch.rows(blocks.rows)
    if not items.shape[0]:
        return
    tensors = (q, k, v, out)
    attention_forward[(items.shape[0] * q.shape[1],)](
        *tensors, items, *_strides(tensors), alpha / 2, 1 / scale_length,
        **_constants(batch, q, v, blocks), **_options(blocks),
    )  # fmt: skip


def attention_backward_into(
    grads: tuple[Tensor, Tensor, Tensor],
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    alpha: float,
    scale_length: float,
) -> None:
    """Write the gradients of `q`, `k` and `v` to `grads`, three tensors of their shapes."""
    d_q, d_k, d_v = grads
    _backward_rows(d_q, d_out, q, k, v, batch, alpha, scale_length)
    _backward_keys(d_k, d_v, d_out, q, k, v, batch, alpha, scale_length)


def _backward_rows(
    d_q: Tensor, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch, alpha: float, scale_length: float
) -> None:
    blocks = _blocks("rows", batch.mask, q, v)
    items = batch.rows(blocks.rows)
    if not items.shape[0]:
        return
    tensors = (q, k, v, d_out, d_q)
    attention_backward_rows[(items.shape[0] * q.shape[1],)](
        *tensors, items, *_strides(tensors), alpha / 2, 1 / scale_length,
        **_constants(batch, q, v, blocks), **_options(blocks),
    )  # fmt: skip


def _backward_keys(
    d_k: Tensor,
    d_v: Tensor,
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    alpha: float,
    scale_length: float,
) -> None:
    blocks = _blocks("keys", batch.mask, q, v)
    work = batch.keys(blocks.keys, blocks.rows)
    if not work.items.shape[0]:
        return
    heads, constants = q.shape[1], _constants(batch, q, v, blocks)
    shape = (work.slots, heads, blocks.keys)
    parts = [torch.empty(*shape, x.shape[2], dtype=torch.float32, device=q.device) for x in (k, v)]
    tensors = (q, k, v, d_out, d_k, d_v)
    attention_backward_keys[(work.items.shape[0] * heads,)](
        *tensors, *parts, work.items, *_strides(tensors), alpha / 2, 1 / scale_length,
        **constants, **_options(blocks),
    )  # fmt: skip
    if work.slots:
        kept = {
            name: constants[name] for name in ("M", "CONTEXT", "TARGETS", "HEADS", "D_QK", "D_V", "P_QK", "P_V", "BN")
        }
        attention_backward_sum[(work.sums.shape[0] * heads * (blocks.keys // SUM_ROWS),)](
            *parts, d_k, d_v, work.sums, *_strides((d_k, d_v)), **kept, ROWS=SUM_ROWS, num_warps=4,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The passes of one batch for a fused layer, which owns the buffers (`hstu_layer.Attention`)."""

    batch: Batch
    alpha: float
    scale_length: float

    @classmethod
    def of(cls, offsets: Tensor, total: int, mask: MaskSpec, alpha: float, scale_length: float) -> LayerAttention:
        return cls(batch_of(offsets, total, mask, None, None), alpha, scale_length)

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        out = torch.empty(v_THD.shape, dtype=v_THD.dtype, device=v_THD.device)
        attention_forward_into(out, q_THD, k_THD, v_THD, self.batch, self.alpha, self.scale_length)
        return out

    def backward(
        self, d_a_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, out: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        attention_backward_into(out, d_a_THD, q_THD, k_THD, v_THD, self.batch, self.alpha, self.scale_length)


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
) -> Tensor:
    """Return `semi_local_attention` of tensors on a GPU (or, in Triton's interpreter, on the CPU); differentiable."""
    found: Tensor = torch.ops.longview.semi_local_attention(
        q, k, v, offsets, _encoded(mask), alpha, scale_length, context_lengths, target_lengths
    )
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
    attention_forward_into(out, q, k, v, batch, alpha, scale_length)
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
) -> Tensor:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    batch = batch_of(offsets, q.shape[0], _decoded(mask), context_lengths, target_lengths)
    attention_forward_into(out, q, k, v, batch, alpha, scale_length)
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
) -> tuple[Tensor, Tensor, Tensor]:
    d_out, q, k, v = (_rows_contiguous(x) for x in (d_out, q, k, v))
    grads = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(k.shape, dtype=k.dtype, device=k.device),
        torch.empty(v.shape, dtype=v.dtype, device=v.device),
    )
    batch = batch_of(offsets, q.shape[0], _decoded(mask), context_lengths, target_lengths)
    attention_backward_into(grads, d_out, q, k, v, batch, alpha, scale_length)
    return grads


@_attention_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    q_, k_, v_ = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return q_, k_, v_


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, mask, alpha, scale_length, context, targets = inputs
    ctx.save_for_backward(q, k, v, offsets, context, targets)
    ctx.settings = mask, alpha, scale_length


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, context, targets = ctx.saved_tensors
    grads = torch.ops.longview.semi_local_attention_backward(d_out, q, k, v, offsets, *ctx.settings, context, targets)
    return (*grads, None, None, None, None, None, None)


_attention.register_autograd(_differentiate, setup_context=_save)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


@lru_cache(maxsize=64)
def _encoded(mask: MaskSpec) -> str:
    return json.dumps(dataclasses.asdict(mask))


@lru_cache(maxsize=64)
def _decoded(mask: str) -> MaskSpec:
    return MaskSpec(**json.loads(mask))


def _blocks(kernel: Kernel, mask: MaskSpec, q: Tensor, v: Tensor) -> Blocks:
    padded = max(padded_dim(q.shape[2]), padded_dim(v.shape[2]))
    return blocks_for(kernel, mask, padded, q.element_size())


def _strides(tensors: tuple[Tensor, ...]) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _constants(batch: Batch, q: Tensor, v: Tensor, blocks: Blocks) -> dict[str, Any]:
    exact = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "M": batch.mask,
        "CONTEXT": batch.shape.context is not None,
        "TARGETS": batch.shape.targets is not None,
        "HEADS": q.shape[1],
        "D_QK": q.shape[2],
        "D_V": v.shape[2],
        "P_QK": padded_dim(q.shape[2]),
        "P_V": padded_dim(v.shape[2]),
        "BM": blocks.rows,
        "BN": blocks.keys,
        "JOINED": blocks.joined,
        "FAST": q.dtype != torch.float32 and not interpreted(),
        "PRECISION": "ieee" if exact or interpreted() else "tf32",
    }


def _options(blocks: Blocks) -> dict[str, int]:
    return {"num_warps": blocks.warps, "num_stages": blocks.stages}
