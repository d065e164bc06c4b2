"""Attention of the newest rows alone: one a sequence, as recommending needs of the last layer, or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.ops.jagged import positions, positions_from_end, segment_ids

if TYPE_CHECKING:
    from longview.ops.attention.bias import RelativeBias
    from longview.ops.attention.mask import MaskSpec


def newest_rows(
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
    """Return `newest_rows_attention` on any device, sequence by sequence: O(queries x tokens) each."""
    asked, bounds = query_offsets.tolist(), offsets.tolist()
    batch = len(bounds) - 1
    contexts = [0] * batch if context_lengths is None else context_lengths.tolist()
    targets = [0] * batch if target_lengths is None else target_lengths.tolist()
    wide = torch.promote_types(q.dtype, torch.float32)
    out = v.new_empty(q.shape[0], *v.shape[1:])
    for b, (c, t) in enumerate(zip(contexts, targets, strict=True)):
        rows, tokens = slice(asked[b], asked[b + 1]), slice(bounds[b], bounds[b + 1])
        length, queries = bounds[b + 1] - bounds[b], asked[b + 1] - asked[b]
        place = torch.arange(length, device=q.device)
        visible = mask.visible(place[length - queries :, None], place[None, :], c, length - c - t, t)
        z = alpha * torch.einsum("ihd,jhd->hij", q[rows].to(wide), k[tokens].to(wide))
        weight = F.silu(z) * visible / scale_length
        out[rows] = torch.einsum("hij,jhd->ihd", weight, v[tokens].to(wide)).to(v.dtype)
    return out


def newest_row_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    bias: RelativeBias | None = None,
) -> Tensor:
    """Return the row that `semi_local_attention` gives the newest history event of each sequence.

    Sequences are history alone (no context, no targets). q: (batch, heads, d_qk), the newest rows;
    k: (total, heads, d_qk); v: (total, heads, d_v); result (batch, heads, d_v). Cost O(total), no gradient
    needed at inference.
    """
    total = k.shape[0]
    segments = segment_ids(offsets, total)
    age = positions_from_end(offsets, total)
    if mask.local_window and not (mask.global_size and mask.global_mode == "recent"):
        visible = age < mask.local_window
        if mask.global_size:
            visible |= positions(offsets, total) < mask.global_size
        kept = visible.nonzero()[:, 0]
        k, v, segments, age = k[kept], v[kept], segments[kept], age[kept]
    else:
        kept = None
    wide = torch.promote_types(q.dtype, torch.float32)
    z = torch.einsum("thd,thd->th", q[segments], k).to(wide) * alpha
    if bias is not None:
        z = z + _newest_bias(bias, offsets, segments, age, kept)
    weight = (F.silu(z) / scale_length).to(v.dtype)
    out = v.new_zeros(offsets.numel() - 1, *v.shape[1:])
    return out.index_add_(0, segments, weight[..., None] * v)


def _newest_bias(bias: RelativeBias, offsets: Tensor, segments: Tensor, age: Tensor, kept: Tensor | None) -> Tensor:
    added = age.new_zeros(1, 1)
    if bias.position is not None:
        added = added + bias.position.T[age.clamp(max=bias.position.shape[1] - 1)]
    if bias.time is not None and bias.timestamps is not None:
        stamps = bias.timestamps if kept is None else bias.timestamps[kept]
        newest = bias.timestamps[offsets[1:] - 1]
        added = added + bias.time.T[bias.buckets(newest[segments] - stamps)]
    return added
