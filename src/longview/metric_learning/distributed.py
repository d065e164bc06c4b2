"""How ranks share a memory: each its own, copies, or parts of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from longview.metric_learning.reference import Reference
from longview.ops.collectives import gather_rows, row_counts

Mode = Literal["local", "replicated", "sharded"]


def whole(shard: Reference) -> Reference:
    """Return the rows of every rank's `shard`, a copy that lives as long as the loss of the step needs it."""
    sizes = row_counts(len(shard), shard.rows.device)
    mask = None if shard.mask is None else gather_rows(shard.mask.to(torch.uint8), sizes).bool()
    return replace(
        shard,
        rows=gather_rows(shard.rows, sizes),
        labels=gather_rows(shard.labels, sizes),
        sample_ids=gather_rows(shard.sample_ids, sizes),
        inserted=gather_rows(shard.inserted.to(shard.rows.device), sizes).cpu(),
        mask=mask,
    )
