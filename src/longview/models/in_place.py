"""Candidates through the layers of a stack on a GPU: five launches a layer, cached keys and values read where they are.

The other form, `cached_stack`'s own, puts the candidates' keys and values behind the cached ones in every layer and
goes operation by operation; it does whatever the kernels do not. Shape suffixes: C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longview.models.hstu import HSTULayer, HSTUStack, product_dtype
from longview.models.state import Cache
from longview.ops.attention.cached import CachedKeys, CandidateWork, cached_attention
from longview.ops.attention.cached import why_no_kernel as why_no_attention

if TYPE_CHECKING:
    from longview.ops.hstu_layer.prepared import PreparedLayer


@dataclass(frozen=True, eq=False)
class InPlaceStack:
    """The layers of a stack of one stage, made ready for products in one dtype; it keeps the weights as they are."""

    layers: tuple[tuple[HSTULayer, PreparedLayer], ...]

    @classmethod
    def of(cls, stack: HSTUStack, product: torch.dtype) -> InPlaceStack:
        return cls(tuple((layer, layer.prepared(product)) for layer in stack.hstu_layers()))

    def __call__(self, x_CD: Tensor, work: CandidateWork, cache: Cache) -> Tensor:
        """Return (C, D), the candidates' vectors behind what `cache` holds of their users; no host waits."""
        for number, (layer, prepared) in enumerate(self.layers):
            keys, values = cache.keys[:, number], cache.values[:, number]
            attend = partial(
                cached_attention,
                work=work,
                cache=CachedKeys(keys, values, cache.offsets, cache.context_lengths),
                mask=layer.mask,
                alpha=layer.alpha,
                scale_length=layer.scale_length,
                blocks=layer.blocks,
                kernel=True,
            )
            x_CD = prepared(x_CD, attend)
        return x_CD


def read_in_place(
    stages: Sequence[tuple[InPlaceStack, Cache]], x_CD: Tensor, offsets: Tensor, micro_batch: int | None = None
) -> Tensor:
    """Return (C, D), the vectors of candidates after all `stages`, `micro_batch` at a time (None: all at once).

    `offsets` (users + 1,) int64: whose candidates they are. Nobody waits for the device.
    """
    total, size = len(x_CD), micro_batch or max(len(x_CD), 1)
    found = []
    for start in range(0, total, size):
        end = min(start + size, total)
        part = x_CD[start:end]
        work = CandidateWork(offsets if part is x_CD else offsets.clamp(start, end) - start, end - start)
        for stack, cache in stages:
            part = stack(part, work, cache)
        found.append(part)
    return found[0] if len(found) == 1 else torch.cat(found) if found else x_CD


def why_not_in_place(stack: HSTUStack, cached: torch.dtype, x: Tensor) -> str | None:
    """Return why candidates like the rows `x` cannot be read so against keys and values of dtype `cached`, in a
    sentence, or None where they can."""
    layer = stack.hstu_layers()[0]
    reason = layer.why_not_prepared(x, cached)
    if reason is not None:
        return reason
    head = x.new_empty(0, 1, max(layer.d_qk, layer.d_v), dtype=product_dtype(x))
    return why_no_attention(head, head, x.device)
