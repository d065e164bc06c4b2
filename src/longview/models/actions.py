"""What happened at an event, added to its item: one token an event, where HSTU spends two.

An event carries a bitmask of actions and any number of strengths. Each action bit and each bucket of a strength has an
embedding; they are summed, or laid side by side through a small MLP. Source: heterogeneous action encoding of
ULTRA-HSTU, arXiv 2602.16986 (merged tokens; the paper gives no sizes, so those are our choice).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longview.data.schema import Schema

SIDE_WIDTH = 16  # of one action or strength where they lie side by side

Merge = Literal["sum", "mlp"]
AtTargets = Literal["zero", "unknown"]


class ActionEmbedding(nn.Module):
    """Vectors of what happened at each event.

    Args:
        schema: the actions and strengths that events carry.
        width: of the model.
        merge: `sum` of the embeddings, or all of them through an `mlp`.
        at_targets: a candidate, to which nothing has happened yet, gets `zero` or a learned `unknown` vector. So do
            events whose actions nobody knows, as those of a sequence that came without.
    """

    def __init__(self, schema: Schema, width: int, merge: Merge, at_targets: AtTargets) -> None:
        super().__init__()
        self.num_actions = len(schema.actions)
        wide = width if merge == "sum" else SIDE_WIDTH
        self.bits = nn.Parameter(_start(self.num_actions, wide)) if self.num_actions else None
        self.strengths = nn.ModuleList(nn.Embedding(s.num_codes, wide, _weight=_start(s.num_codes, wide))
                                       for s in schema.strengths)  # fmt: skip
        for number, buckets in enumerate(schema.strengths):
            boundaries = torch.tensor(buckets.boundaries, dtype=torch.float32)
            self.register_buffer(f"boundaries_{number}", boundaries, persistent=False)  # the schema holds them
        parts = self.num_actions + len(schema.strengths)
        self.merge = (
            nn.Sequential(nn.Linear(parts * wide, width), nn.SiLU(), nn.Linear(width, width))
            if merge == "mlp"
            else None
        )
        self.unknown = nn.Parameter(torch.zeros(width)) if at_targets == "unknown" else None
        self.width = width

    def forward(self, actions: Tensor | None, strengths: Tensor | None, unknown: Tensor | None, total: int) -> Tensor:
        """Return (total, width).

        Args:
            actions: (total,) int64 bitmasks, or None where nobody knows them.
            strengths: (total, s) float32, NaN where an event has none, or None.
            unknown: (total,) bool, the candidates: whatever the other arguments say of them is not read.
            total: how many events there are.
        """
        if (actions is None and self.num_actions) or (strengths is None and not self.num_actions):
            return self._nothing(total)
        known = self._known(actions, strengths, total)
        if unknown is None:
            return known
        return torch.where(unknown[:, None], self._nothing(total).to(known.dtype), known)

    def _known(self, actions: Tensor | None, strengths: Tensor | None, total: int) -> Tensor:
        parts = []
        if self.bits is not None and actions is not None:
            places = torch.arange(self.num_actions, device=actions.device)
            done = ((actions[:, None] >> places) & 1).to(self.bits.dtype)
            parts.append(done @ self.bits if self.merge is None else (done[:, :, None] * self.bits).flatten(1))
        for number, table in enumerate(self.strengths):
            codes = self._codes(number, strengths, total)
            parts.append(F.embedding(codes, table.weight))  # type: ignore[arg-type]
        if self.merge is None:
            return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        merged: Tensor = self.merge(torch.cat(parts, dim=1))
        return merged

    def _codes(self, number: int, strengths: Tensor | None, total: int) -> Tensor:
        """Return the bucket of a strength at each event, 0 where it has none (`longview.data.schema.Buckets`)."""
        boundaries: Tensor = self.get_buffer(f"boundaries_{number}")
        if strengths is None:
            return torch.zeros(total, dtype=torch.int64, device=boundaries.device)
        values = strengths[:, number].contiguous()
        codes = torch.bucketize(values, boundaries, right=True) + 1
        return codes.masked_fill(values.isnan(), 0)

    def _nothing(self, total: int) -> Tensor:
        if self.unknown is not None:
            return self.unknown.expand(total, -1)
        some: Tensor = next(self.parameters())
        return some.new_zeros(total, self.width)


def _start(rows: int, width: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(rows, width), std=math.sqrt(1 / width), a=-1.0, b=1.0)
