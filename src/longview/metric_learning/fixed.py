"""The steps of a memory as the same operations every time, so that a CUDA graph can replay them.

`EmbeddingMemory.forward` reads its counters on the host, slices what is filled and refuses a bad batch before it
changes anything: all of it needs the device to have answered. Here the counters are on the device, the whole ring is
read under a mask, and a batch that is not a number leaves every buffer as it was by `torch.where`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longview.errors import InputError
from longview.metric_learning.drift import DriftState
from longview.metric_learning.memory import EmbeddingMemory
from longview.metric_learning.observe import Rooms, observe
from longview.metric_learning.reference import Reference


class FixedSteps:
    """What takes the place of `memory` in a captured step, on the same buffers; batches have `batch` rows each.

    `__call__` is the forward pass, `enqueue` writes its rows once the loss has run backward, both on the device.
    `advance`, once a step or replay, counts on the host. `settle` brings the memory's own counters up to date: call
    it before anybody else reads the memory.

    Raises:
        InputError: a memory whose steps differ from each other (`why_not_fixed`), or that has not seen a batch.
    """

    def __init__(self, memory: EmbeddingMemory, batch: int) -> None:
        reason = why_not_fixed(memory)
        if reason is None and (not int(memory.step) or not memory.warm):
            reason = "its first steps, warm-up included, are not like the others: take them first"
        if reason is not None:
            raise InputError(f"steps of this memory cannot be captured: {reason}")
        self.memory, self.batch = memory, batch
        memory.queue.commit()
        queue, device = memory.queue, memory.drift_moments.device
        # The rows that ever entered, or fewer that lead to the same places: of a full ring all places are taken.
        full = int(queue.count) == queue.capacity
        self.entered = torch.tensor(int(queue.cursor) + full * queue.capacity, device=device)
        self.slots = torch.arange(queue.capacity, device=device)
        self.unsettled = 0
        self._rooms = Rooms(queue.rows.dtype, again=False)
        self._waiting: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> Reference:
        """Observe a batch and return the memory as its loss sees it."""
        memory = self.memory
        policy, state = memory.config.drift, memory.drift_state
        values = embeddings.detach().to(state.moments.dtype)
        good = (values * 0).sum() == 0  # NaN or infinity times 0 is NaN
        if policy.corrects:
            seen = observe(policy, memory.config.floor, values, labels, state, rooms=self._rooms)
            _overwrite(state, seen.state, good)
            values = seen.stored
        self._waiting = (values, labels, sample_ids, good)
        before = memory.config.order == "enqueue-first"
        if before:
            self.enqueue()
        queue = memory.queue
        scale, shift = memory.affine() if policy.corrects else (None, None)
        return Reference(
            rows=queue.rows,
            labels=queue.labels,
            sample_ids=queue.sample_ids,
            inserted=queue.inserted,
            mask=self._mask(newest=0 if before else 1),
            scale=scale,
            shift=shift,
            renormalise=memory.config.normalises,
            anchor_ids=sample_ids,
            step=int(memory.step),
        )

    @torch.no_grad()
    def enqueue(self) -> None:
        """Write the rows of the newest batch over the oldest ones, if that was not done before its loss."""
        if self._waiting is None:
            return
        *columns, good = self._waiting
        self._waiting = None
        queue = self.memory.queue
        places = (self.entered + self.slots[: self.batch]) % queue.capacity
        for held, new in zip((queue.rows, queue.labels, queue.sample_ids), columns, strict=True):
            old = held[places]
            held.index_copy_(0, places, torch.where(good, new.to(held.dtype), old))
        self.entered.add_(good, alpha=self.batch)

    def advance(self) -> None:
        """Count one step on the host."""
        memory = self.memory
        for counter, number in ((memory.step, 1), (memory.cohorts, 1), (memory.seen, self.batch),
                                (memory.stored, self.batch)):  # fmt: skip
            counter += number
        if memory.config.drift.corrects:
            memory.drift_state.steps.add_(1)
        self.unsettled += 1

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the counters that the memory keeps on the host up to the steps since the last time."""
        queue, total = self.memory.queue, self.unsettled * self.batch
        if not total:
            return
        number = torch.arange(max(0, total - queue.capacity), total)  # of rows, the first unsettled one is 0
        places = (int(queue.cursor) + number) % queue.capacity
        for name, newest in (("inserted", self.memory.step), ("cohort", self.memory.cohorts)):
            getattr(queue, name)[places] = int(newest) - self.unsettled + number // self.batch
        queue.cursor.fill_((int(queue.cursor) + total) % queue.capacity)
        queue.count.fill_(min(int(queue.count) + total, queue.capacity))
        self.unsettled = 0

    def _mask(self, newest: int) -> Tensor:
        """Return which places of the ring take part, (m,); the rows put last are `newest` steps old."""
        mask = self.slots < self.entered
        limit = self.memory.config.age_limit
        if limit is not None:
            behind = (self.entered - 1 - self.slots) % self.memory.queue.capacity
            mask &= behind // self.batch + newest <= limit
        return mask


def _overwrite(state: DriftState, new: DriftState, good: Tensor) -> None:
    """Overwrite the tensors of `state` by the new ones where `good` is true; a few launches do it for all."""
    pairs = [(old, now) for old, now in zip(state[:-1], new[:-1], strict=True) if now is not old]
    held = [old for old, _ in pairs]
    before, after = (torch.cat([part.flatten() for part in side]) for side in zip(*pairs, strict=True))
    parts = torch.split(torch.where(good, after, before), [old.numel() for old in held])
    torch._foreach_copy_(held, [part.view_as(old) for part, old in zip(parts, held, strict=True)])


def why_not_fixed(memory: EmbeddingMemory) -> str | None:
    """Return why steps of `memory` cannot be captured, in words, or None where they can."""
    if memory.config.distributed != "local":
        return f"distributed {memory.config.distributed}: ranks tell each other how many rows they have"
    if memory.config.drift.corrects and memory.config.drift.anchor == "memory":
        return "drift.anchor memory needs sums over the rows in the ring, which are counted on the host"
    return None
