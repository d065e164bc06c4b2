"""Attention of the newest rows alone: one a sequence, as recommending needs of the last layer, or several."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.ops.jagged import history_ages, positions, segment_ids

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
    bias: RelativeBias | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Return `newest_rows_attention` on any device, sequence by sequence: O(queries x tokens) each.

    `bias` is added before SiLU; `places` (total,) int64 say where each token stands in its whole history, for
    distances between tokens of which some that lay between are no longer there.
    """
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
        if bias is not None:
            numbers = torch.arange(bounds[b], bounds[b + 1], device=q.device)
            z = z + _bias_between(bias, numbers[length - queries :], numbers, places)
        weight = F.silu(z) * visible / scale_length
        out[rows] = torch.einsum("hij,jhd->ihd", weight, v[tokens].to(wide)).to(v.dtype)
    return out


def _bias_between(bias: RelativeBias, rows: Tensor, columns: Tensor, places: Tensor | None) -> Tensor:
    """Return the bias (heads, rows, columns) between tokens that stand at `places` of their history."""
    if bias.position is None or places is None:
        return bias.block(rows, columns)
    distance = (places[rows][:, None] - places[columns][None, :]).abs().clamp_(max=bias.position.shape[1] - 1)
    added = bias.position[:, distance]
    return added if bias.time is None else added + replace(bias, position=None).block(rows, columns)


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
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """Return the row that `semi_local_attention` gives the newest history event of each sequence.

    q: (batch, heads, d_qk), the newest history rows; k: (total, heads, d_qk); v: (total, heads, d_v); result
    (batch, heads, d_v). Sequences without history get numbers that mean nothing. Cost O(total), no gradient needed
    at inference.
    """
    total = k.shape[0]
    segments = segment_ids(offsets, total)
    age = history_ages(offsets, total, target_lengths)
    windowed = mask.local_window > 0 and not (mask.global_size and mask.global_mode == "recent")
    if windowed or target_lengths is not None:
        visible = age >= 0
        if windowed:
            visible &= _in_sight(mask, offsets, segments, age, context_lengths)
        kept = visible.nonzero()[:, 0]
        k, v, segments, age = k[kept], v[kept], segments[kept], age[kept]
    else:
        kept = None
    wide = torch.promote_types(q.dtype, torch.float32)
    z = torch.einsum("thd,thd->th", q[segments], k).to(wide) * alpha
    if bias is not None:
        newest = offsets[1:] - 1 if target_lengths is None else offsets[1:] - 1 - target_lengths
        z = z + _newest_bias(bias, newest, segments, age, kept)
    weight = (F.silu(z) / scale_length).to(v.dtype)
    out = v.new_zeros(offsets.numel() - 1, *v.shape[1:])
    return out.index_add_(0, segments, weight[..., None] * v)


def _in_sight(mask: MaskSpec, offsets: Tensor, segments: Tensor, age: Tensor, context_lengths: Tensor | None) -> Tensor:
    """Return which tokens the newest history row of their sequence sees through its window, (total,) bool."""
    place = positions(offsets, segments.numel())
    if context_lengths is None:
        return (age < mask.local_window) | (place < mask.prefix(0))
    context = context_lengths[segments]
    sinks = (mask.global_size - context).clamp(min=0) if mask.prefix_counts_context else mask.global_size
    in_prefix = place < context + (sinks if mask.global_mode == "prefix" else 0)
    is_context = place < context
    # Without sight of all context, a window counts context and history together.
    short = (age + place - context + 1 < mask.local_window) & is_context
    in_context = is_context & (mask.context_visible | short)
    return ((age < mask.local_window) & ~is_context) | (in_prefix & ~is_context) | in_context


def _newest_bias(bias: RelativeBias, newest: Tensor, segments: Tensor, age: Tensor, kept: Tensor | None) -> Tensor:
    added = age.new_zeros(1, 1)
    if bias.position is not None:
        added = added + bias.position.T[age.clamp(max=bias.position.shape[1] - 1)]
    if bias.time is not None and bias.timestamps is not None:
        stamps = bias.timestamps if kept is None else bias.timestamps[kept]
        added = added + bias.time.T[bias.buckets(bias.timestamps[newest][segments] - stamps)]
    return added
