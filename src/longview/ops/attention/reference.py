"""Semi-local attention written as its definition: dense, one sequence after another, plain autograd.

    z_ij = alpha <q_i, k_j> + bias_ij        out_i = 1/S sum_j M_ij silu(z_ij) v_j

Every faster backend is tested against this one in float64. Shape suffixes: T tokens of the batch, L of one
sequence, H heads, D head dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from longview.ops.attention.bias import RelativeBias
    from longview.ops.attention.mask import MaskSpec


def reference_attention(
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
) -> Tensor:
    """Return attention (T, H, D_v) as `semi_local_attention` defines it, in O(L²) time and memory a sequence."""
    bounds = offsets.tolist()
    batch = len(bounds) - 1
    contexts = [0] * batch if context_lengths is None else context_lengths.tolist()
    targets = [0] * batch if target_lengths is None else target_lengths.tolist()
    outputs = [v[:0]]
    for start, stop, c, t in zip(bounds[:-1], bounds[1:], contexts, targets, strict=True):
        q_LHD, k_LHD, v_LHD = (_at_least_float32(x[start:stop]) for x in (q, k, v))
        z_HLL = alpha * torch.einsum("ihd,jhd->hij", q_LHD, k_LHD)
        if bias is not None:
            tokens = torch.arange(start, stop, device=q.device)
            z_HLL = z_HLL + bias.block(tokens, tokens)
        visible_LL = mask.dense(c, stop - start - c - t, t).to(q.device)
        weight_HLL = F.silu(z_HLL) * visible_LL / scale_length
        outputs.append(torch.einsum("hij,jhd->ihd", weight_HLL, v_LHD).to(v.dtype))
    return torch.cat(outputs)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
