"""Dense semi-local attention over padded batches: any device, O(length²) memory.

It serves devices that have no kernel of their own yet, and short histories on a GPU, where it is compiled.
Shape suffixes: B sequences, L padded length, H heads, D head dimension.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.work import Shape, demand
from longview.ops.jagged import from_padded, to_padded

if TYPE_CHECKING:
    from longview.ops.attention.mask import MaskSpec

RANGE = "dense_attention"  # what a profile calls it
WORDS = "offsets must rise from 0 to the tokens of q, context and targets fit their sequences"
ROUND = 32  # padded lengths are multiples of this, so that a compiled core sees few shapes


def dense_attention(
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
    max_length: int | None = None,
) -> Tensor:
    """Return pointwise attention (total, H, D_v), as `semi_local_attention` defines it.

    `max_length` is the longest sequence where the caller knows it, which saves a device synchronisation.
    """
    with record_function(RANGE):
        longest = int(offsets.diff().max()) if max_length is None else max_length
        padded = -(-longest // ROUND) * ROUND
        lengths = offsets.diff()
        if offsets.is_cuda:
            shape = Shape(offsets, context_lengths, target_lengths, q.shape[0], q.shape[0])
            demand(shape.fits() & (lengths <= padded).all(), f"attention: {WORDS}, sequences of up to {longest}")
        q_BLHD, k_BLHD, v_BLHD = (to_padded(x, offsets, padded) for x in (q, k, v))
        visible = visibility(mask, lengths, context_lengths, target_lengths, padded)
        added = None if bias is None else dense_bias(bias, offsets, padded)
        # Evaluation sees too many shapes for compilation to pay.
        core = _compiled_core() if q.is_cuda and torch.is_grad_enabled() else _core
        out_BLHD = core(q_BLHD, k_BLHD, v_BLHD, visible, added, alpha, 1.0 / scale_length)
        return from_padded(out_BLHD, offsets, v.shape[0])


def visibility(mask: MaskSpec, lengths: Tensor, context: Tensor | None, targets: Tensor | None, padded: int) -> Tensor:
    """Return the mask as (B or 1, L, L) booleans. Keys beyond a sequence need no mask: their values are zero."""
    row = torch.arange(padded, device=lengths.device)[:, None]
    column = row.T
    if context is None and targets is None and (mask.global_size == 0 or mask.global_mode == "prefix"):
        visible = column <= row
        if mask.local_window:
            visible &= (row - column < mask.local_window) | (column < mask.global_size)
        return visible[None]
    dense = torch.zeros(lengths.numel(), padded, padded, dtype=torch.bool)
    none = torch.zeros_like(lengths)
    counts = zip(
        lengths.tolist(),
        (none if context is None else context).tolist(),
        (none if targets is None else targets).tolist(),
        strict=True,
    )
    for at, (length, c, t) in enumerate(counts):
        dense[at, :length, :length] = mask.dense(c, length - c - t, t)
    return dense.to(lengths.device)


def dense_bias(bias: RelativeBias, offsets: Tensor, padded: int) -> Tensor:
    """Return the relative bias as (B or 1, H, L, L)."""
    index = torch.arange(padded, device=offsets.device)
    total: Tensor | None = None
    if bias.position is not None:
        # A row of the Toeplitz matrix is a window of one vector: an expanded gather would make the backward
        # scatter L² gradients per head through atomics.
        distance = (index[:, None] - index[None, :]).abs().clamp_(max=bias.position.shape[1] - 1)
        total = bias.position[:, distance][None]
    if bias.time is not None and bias.timestamps is not None:
        stamps = to_padded(bias.timestamps, offsets, padded)
        bucket = bias.buckets(stamps[:, :, None] - stamps[:, None, :])
        timed = F.embedding(bucket, bias.time.T).permute(0, 3, 1, 2)
        total = timed if total is None else total + timed
    if total is None:
        return torch.zeros(1, 1, 1, 1, device=offsets.device)
    return total


def _core(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, visible: Tensor, bias: Tensor | None, alpha: float, scale: float
) -> Tensor:
    z_BHLL = torch.matmul(q_BLHD.transpose(1, 2) * alpha, k_BLHD.permute(0, 2, 3, 1))
    if bias is not None:
        z_BHLL = z_BHLL + bias
    wide = torch.promote_types(z_BHLL.dtype, torch.float32)
    weight = (F.silu(z_BHLL.to(wide)) * visible[:, None] * scale).to(v_BLHD.dtype)
    return torch.matmul(weight, v_BLHD.transpose(1, 2)).transpose(1, 2)


@cache
def _compiled_core() -> Any:
    return torch.compile(_core)
