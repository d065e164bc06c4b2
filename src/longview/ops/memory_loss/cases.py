"""What the launches of a memory loss depend on, and how a walk over the memory is divided.

Shapes: n anchors, m rows of the memory, d width, S splits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longview.ops.memory_loss.forms import Form, Plan
from longview.ops.softmax_loss.triton_tile import Tile


class Case(NamedTuple):
    """What the launches of a loss depend on, but for where its tensors lie.

    n, m, width: anchors, rows of the memory, values of each.
    embeddings, memory: their dtypes; the memory's is float32 where it does not have two bytes.
    reduction: `mean`, `sum`, `apart` (the contrastive loss over active pairs) or `none`.
    gradient: the anchors want one.
    mapped: dtypes of scale and shift, where rows are mapped.
    divided: rows are divided by their norms.
    ids, positions, masked: what leaves pairs out.
    early: a kernel may begin while the one before it ends.
    tile: None for the one of the width.
    """

    n: int
    m: int
    width: int
    embeddings: torch.dtype
    memory: torch.dtype
    plan: Plan
    reduction: str
    gradient: bool
    mapped: tuple[torch.dtype, torch.dtype] | None
    divided: bool
    ids: bool
    positions: bool
    masked: bool
    early: bool
    tile: tuple[Tile, int] | None


class Walk(NamedTuple):
    """A walk, and how it is divided. It leaves sums of each split, (S * n,), and gradients of each slot, (slots, n, d).

    side: `negative` or `positive`, which its buffers begin with.
    splits: S.
    each: rows of the memory a split.
    share: splits of a slot.
    """

    form: Form
    side: str
    splits: int
    each: int
    share: int

    @property
    def slots(self) -> int:
        return -(-self.splits // self.share)

    def sums(self) -> tuple[str, ...]:
        """Return the names of the buffers that it writes."""
        return tuple(f"{self.side} {name}" for name in ("first", "second", "third", "mass", "grads"))
