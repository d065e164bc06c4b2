"""The relative attention bias of HSTU: a learned number per head, by distance and by time difference.

It is added to the scaled score before SiLU. Source: HSTU, arXiv 2402.17152, and its research code: the time
bucket is floor(ln(max(|dt|, 1)) / 0.301). Unlike that code we compare the events' own times, not the next event's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.ops.attention.lanes import Scratch

BUCKET_WIDTH = 0.301  # in ln(seconds), from the published code


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """Bias tables of one layer, and the times they are looked up with.

    Attributes:
        position: (heads, max_distance + 1) or None; entry d is added where |i - j| = d, the last one beyond.
        time: (heads, num_buckets) or None; needs `timestamps`.
        timestamps: (total,) of every token of the batch, in the unit the buckets were trained with, or None.
    """

    position: Tensor | None = None
    time: Tensor | None = None
    timestamps: Tensor | None = None

    def buckets(self, difference: Tensor) -> Tensor:
        """Return the time bucket of each (signed) time difference, int64, of the same shape."""
        assert self.time is not None
        return time_buckets(difference, self.time.shape[1]).long()

    def block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the bias (heads, num_rows, num_columns) between tokens of one sequence.

        `rows` and `columns` are int64 token numbers in the batch. Differentiable in both tables.
        """
        added: Tensor | None = None
        if self.position is not None:
            distance = (rows[:, None] - columns[None, :]).abs().clamp_(max=self.position.shape[1] - 1)
            added = _look_up(self.position, distance)
        if self.time is not None and self.timestamps is not None:
            bucket = self.buckets(self.timestamps[rows][:, None] - self.timestamps[columns][None, :])
            timed = _look_up(self.time, bucket)
            added = timed if added is None else added + timed
        if added is None:
            return torch.zeros(1, rows.numel(), columns.numel(), device=rows.device)
        return added


def time_buckets(difference: Tensor, num_buckets: int) -> Tensor:
    """Return floor(ln(max(|difference|, 1)) / 0.301), at most `num_buckets - 1`, as int32.

    Example:
        >>> time_buckets(torch.tensor([0, 1, 2, -60, 86400]), 64).tolist()
        [0, 0, 2, 13, 37]
    """
    # Differences are whole numbers before they are rounded to float32; then as few passes as can be.
    if difference.is_cpu:
        bucket, flat = Scratch(torch.float32).take("buckets", difference.shape)
        bucket.copy_(difference).abs_().clamp_(min=1)
        flat.log_()
    else:
        bucket = difference.float().abs_().clamp_(min=1).log_()
    return bucket.mul_(1 / BUCKET_WIDTH).clamp_(max=num_buckets - 1).int()


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    return F.embedding(index, table.T).permute(2, 0, 1)
