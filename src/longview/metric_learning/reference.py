"""What a memory gives to a loss: stored rows as they are, and the map that makes them current."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Reference:
    """Rows of a memory at one step, without a copy. They hold until the memory's next step, which overwrites some.

    rows: (m, d) as stored. labels, sample_ids: (m,) int64. inserted: (m,) int64 on the CPU, the step of each row.
    mask: (m,) bool, the rows that take part, or None for all. scale, shift: (d,) or None: the current embedding of a
    row is `rows * scale + shift`, L2-normalised where `renormalise`. anchor_ids: (b,) int64, the ids of the batch
    that asked; a row with the id of an anchor is the same sample. step: the step of that batch.
    """

    rows: Tensor
    labels: Tensor
    sample_ids: Tensor
    inserted: Tensor
    mask: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    renormalise: bool
    anchor_ids: Tensor
    step: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ages(self) -> Tensor:
        """Steps since each row was stored, (m,) int64 on the CPU."""
        return self.step - self.inserted

    def embeddings(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the corrected rows, (m, d): a copy, for diagnostics and for losses that need one.

        `dtype` is that of the moments by default, or of the rows where nothing is corrected.
        """
        kind = dtype or (self.rows.dtype if self.scale is None else self.scale.dtype)
        rows = self.rows.to(kind)
        if self.scale is not None and self.shift is not None:
            rows = torch.addcmul(self.shift.to(kind), rows, self.scale.to(kind))
        return functional.normalize(rows, dim=1) if self.renormalise else rows
