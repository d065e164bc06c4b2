"""What the model reads: histories of known users, or sequences handed in, as jagged batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from longview.data.batches import JaggedBatch, jagged_rows
from longview.data.dataset import PreparedData
from longview.data.schema import Inputs
from longview.ops.topk import Jagged

Rows = npt.NDArray[np.int64]

TOKENS = 8_192  # tokens encoded at a time: few enough that the activations of a layer stay in cache


@dataclass(frozen=True)
class Histories:
    """Whole histories end to end, whoever they belong to.

    `items` (total,) int64, `offsets` (n + 1,) int64; `timestamps` (total,) int64 seconds, `actions` (total,) int64
    bitmasks, `strengths` (total, s) float32 and `context` (n, features) int64 codes where known.
    """

    items: Rows
    offsets: Rows
    timestamps: Rows | None = None
    actions: Rows | None = None
    strengths: npt.NDArray[np.float32] | None = None
    context: Rows | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of_users(cls, data: PreparedData, users: Rows, inputs: Inputs | None = None) -> Histories:
        """Return everything that `users` (n,) have done, oldest first; `inputs` is what else the model reads."""
        rows, offsets = jagged_rows(data.offsets[users], data.offsets[users + 1])
        timestamps, actions = (None if c is None else c[rows] for c in (data.timestamps, data.actions))
        strengths = np.stack([c[rows] for c in inputs.strengths], axis=1) if inputs and inputs.strengths else None
        context = inputs.context[users] if inputs is not None and inputs.context is not None else None
        return cls(data.items[rows].astype(np.int64), offsets, timestamps, actions, strengths, context)

    def seen(self, device: torch.device) -> Jagged:
        """Return every history as item indices end to end, and offsets: what a new recommendation leaves out."""
        return torch.from_numpy(self.items).to(device), torch.from_numpy(self.offsets.astype(np.int64)).to(device)

    def batches(self, max_length: int) -> Iterator[tuple[Rows, JaggedBatch]]:
        """Yield (which histories, their newest `max_length` events), like lengths together.

        Batches of like lengths cost paths that pad nothing extra.
        """
        ends = self.offsets[1:]
        starts = np.maximum(self.offsets[:-1], ends - max_length)
        order = np.argsort(ends - starts, kind="stable")
        lengths = (ends - starts)[order]
        begin = 0
        while begin < len(order):
            filled = np.cumsum(lengths[begin : begin + TOKENS])
            stop = begin + max(1, int(np.searchsorted(filled, TOKENS, side="right")))
            chosen = order[begin:stop]
            batch = self._batch(starts[chosen], ends[chosen])
            if self.context is not None:
                batch = replace(batch, context=torch.from_numpy(self.context[chosen]))
            yield chosen, batch
            begin = stop

    def _batch(self, starts: Rows, ends: Rows) -> JaggedBatch:
        rows, offsets = jagged_rows(starts, ends)
        timestamps, actions, strengths = (
            None if column is None else torch.from_numpy(column[rows])
            for column in (self.timestamps, self.actions, self.strengths)
        )
        return JaggedBatch(
            torch.from_numpy(self.items[rows]),
            torch.from_numpy(offsets.astype(np.int64)),
            timestamps=timestamps,
            actions=actions,
            strengths=strengths,
        )
