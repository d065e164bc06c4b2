"""A first-in, first-out memory of embeddings that keeps old rows comparable with new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.errors import InputError
from longview.metric_learning.checks import check_batch, check_values, of
from longview.metric_learning.drift import DriftState
from longview.metric_learning.memory_config import DTYPES, MemoryConfig
from longview.metric_learning.observe import Observation, Rooms, observe, standardised
from longview.metric_learning.queue import FixedBuffers, RowQueue, Rows
from longview.metric_learning.reference import Reference
from longview.ops.collectives import (
    gather_rows,
    ranks,
    row_counts,
    same_on_all_ranks,
    sum_over_ranks,
)

OWN_IDS = 1 << 62  # the ids that a memory gives to samples without one begin here
STATE = tuple(f"drift_{name}" for name in DriftState._fields)  # the buffers of the drift policy


class _Batch(NamedTuple):
    """Rows of all ranks (in mode `local`, of this one), which are stored, and the ids of this rank's."""

    rows: Rows
    kept: Tensor | None
    anchor_ids: Tensor


class EmbeddingMemory(FixedBuffers):
    """Rows of earlier batches with labels and sample ids, brought up to date by a drift policy when they are read.

    The whole state is buffers, so a run that is saved and resumed goes on bit for bit. The batch of a step enters the
    ring at the beginning of the next one, so that the loss of the step, backward included, reads rows that nobody
    overwrites meanwhile. A forward pass that raises has changed nothing.

    Example:
        >>> memory = MemoryConfig(capacity=4, width=2, drift={"kind": "none"}).build()
        >>> for step in range(4):
        ...     reference = memory(torch.full((2, 2), float(step)), torch.tensor([0, 1]))
        >>> reference.rows[:, 0].tolist(), reference.ages.tolist()
        ([2.0, 2.0, 1.0, 1.0], [1, 1, 2, 2])
    """

    host = frozenset({"step", "seen", "stored", "cohorts", "drift_steps"})
    step: Tensor
    seen: Tensor
    stored: Tensor
    cohorts: Tensor
    drift_moments: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        held, (world, _) = config.capacity, ranks()
        if config.distributed == "sharded":
            if held % world:
                raise InputError(f"capacity {held} does not divide among {world} ranks: make it a multiple of {world}")
            held //= world
        anchored = config.drift.corrects and config.drift.anchor == "memory"
        self.queue = RowQueue(held, config.width, DTYPES[config.storage], sums=anchored)
        for name, value in zip(STATE, DriftState.empty(config.width, DTYPES[config.moments]), strict=True):
            self.register_buffer(name, value)
        self._rooms = Rooms(DTYPES[config.storage])
        for name in ("step", "seen", "stored", "cohorts"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Rows that this rank holds, the newest batch included."""
        return len(self.queue)

    @property
    def drift_state(self) -> DriftState:
        """The state of the drift policy."""
        return DriftState(*(self._buffers[name] for name in STATE))  # type: ignore[arg-type]

    @property
    def warm(self) -> bool:
        """Whether the warm-up is over."""
        return int(self.step) >= self.config.warmup_steps

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor | None = None,
        *,
        enqueue_mask: Tensor | None = None,
    ) -> Reference:
        """Observe a batch, return the memory as the loss of this batch sees it, and take the batch in.

        Args:
            embeddings: (b, d) floating point; no gradient flows into the memory. With a `MomentumEncoder`, its own.
            labels: (b,) int64, not negative.
            sample_ids: (b,) int64, not negative: who each row is, in every epoch. Without, the memory numbers rows.
            enqueue_mask: (b,) bool, the rows that are stored; all by default. Moments are always of the whole batch.

        In the modes `replicated` and `sharded` every rank gives its own rows, possibly none, and all of them are
        stored in order of rank. `anchor_ids` of the result are those of the rows given here.

        Raises:
            InputError: shapes or dtypes that do not fit, NaN, infinite, negative labels, or a batch larger than the
                memory. The memory is then as it was.
        """
        batch = self._batch(embeddings, labels, sample_ids, enqueue_mask)
        with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
            seen = self._observed(batch.rows)
            self.queue.commit()
            if seen is not None:
                self._set(seen.state)
            if self.warm:
                rows = batch.rows if seen is None else batch.rows._replace(values=self._stored(seen))
                self._put(rows.where(batch.kept), copy=seen is None)
                if self.config.order == "enqueue-first":
                    self.queue.commit()
            reference = self._reference(batch.anchor_ids)
            self.seen.add_(len(batch.rows.labels))
            self.step.add_(1)
        every = self.config.check_every
        if self.config.distributed == "replicated" and every and int(self.step) % every == 0:
            self.check_replicas()
        return reference

    def read(self) -> Reference:
        """Return the memory as it stands, the newest batch included, between the steps of a run."""
        self.queue.commit()
        return self._reference(self.queue.sample_ids[:0])

    @torch.no_grad()
    def fill(self, batches: Iterable[Any], encoder: Callable[[Any], Tensor] | None = None) -> int:
        """Replace the content by embeddings that one encoder makes of `batches`; return the rows held on this rank.

        Args:
            batches: tuples (inputs, labels) or (inputs, labels, sample_ids); read until the memory is full.
            encoder: makes embeddings of inputs; without, inputs are embeddings.

        The drift policy begins anew and sees every batch. As all rows come from one encoder, all are standardised by
        the moments it ends with. Warm-up and `step` are as before.

        Raises:
            InputError: as in `forward`; the rows before the batch at fault are kept.
        """
        corrects, anchor = self.config.drift.corrects, self.config.drift.anchor
        self.queue.clear()
        self.stored.zero_()
        self._set(DriftState.empty(self.config.width, self.drift_moments.dtype, self.drift_moments.device))
        try:
            for inputs, labels, *ids in batches:
                embeddings = inputs if encoder is None else encoder(inputs)
                batch = self._batch(embeddings, labels, ids[0] if ids else None, None)
                rows, room = batch.rows, slice(self.config.capacity - int(self.stored))
                with torch.autocast(embeddings.device.type, enabled=False):
                    seen = self._observed(rows)
                    if seen is not None:
                        self._set(seen.state)
                        rows = rows._replace(values=seen.stored) if anchor == "batch" else rows
                    self._put(Rows(*(column[room] for column in rows)), copy=True)
                self.seen.add_(len(rows.labels))
                self.queue.commit()
                if int(self.stored) == self.config.capacity:
                    break
        finally:
            if corrects and anchor != "batch":
                self.queue.rewrite(lambda rows: standardised(rows, self.drift_moments), self.drift_moments.dtype)
        return len(self.queue)

    def check_replicas(self) -> None:
        """Compare the replicas of all ranks, bit for bit.

        Raises:
            LongviewError: they differ; it says which rank.
        """
        same_on_all_ranks([value for _, value in sorted(self.state_dict().items())], "replicated memory")

    def _batch(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None, mask: Tensor | None) -> _Batch:
        """Return the checked rows of all ranks; changes nothing."""
        shared = self.config.distributed != "local" and ranks()[0] > 1
        check_batch(embeddings, labels, sample_ids, width=self.config.width, least=0 if shared else 1)
        if mask is not None and (mask.shape != labels.shape or mask.dtype != torch.bool):
            raise InputError(f"enqueue_mask must be ({len(labels)},) bool, one a row, got {of(mask)}")
        if embeddings.device != self.drift_moments.device:
            raise InputError(
                f"embeddings are on {embeddings.device} and the memory on {self.drift_moments.device}: "
                "move the memory with .to(device), as any module"
            )
        values = embeddings.detach().to(self.drift_moments.dtype)
        place = None
        if shared:
            sizes = row_counts(len(values), values.device)
            first = sum(sizes[: ranks()[1]])
            place = slice(first, first + len(values))
            values, labels = gather_rows(values, sizes), gather_rows(labels, sizes)
            sample_ids = None if sample_ids is None else gather_rows(sample_ids, sizes)
            mask = None if mask is None else gather_rows(mask.to(torch.uint8), sizes).bool()
        if len(values) > self.config.capacity:
            raise InputError(
                f"a batch of {len(values)} rows does not fit a memory of {self.config.capacity}: "
                "raise capacity to at least the batch size"
            )
        if sample_ids is None:
            first = OWN_IDS + int(self.seen)
            sample_ids = torch.arange(first, first + len(values), device=values.device)
        numbers = torch.stack([labels, sample_ids])  # one copy to keep, and one tensor to look at
        check_values(values, numbers)
        labels, sample_ids = numbers.unbind()
        return _Batch(Rows(values, labels, sample_ids), mask, sample_ids if place is None else sample_ids[place])

    def _observed(self, rows: Rows) -> Observation | None:
        """Return what a policy that corrects makes of a batch; changes nothing."""
        if not self.config.drift.corrects:
            return None
        reduce = sum_over_ranks if self.config.distributed == "local" and ranks()[0] > 1 else None
        return observe(
            self.config.drift,
            self.config.floor,
            rows.values,
            rows.labels,
            self.drift_state,
            reduce,
            rooms=self._rooms,
        )

    def _stored(self, seen: Observation) -> Tensor:
        """Return the rows of this step, (b, d), as they are stored, new; the policy's state is that of this step."""
        if self.config.drift.anchor != "memory":
            return seen.stored
        scale, shift = self.affine()
        return standardised(seen.stored, torch.stack([shift, scale]))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift (d,) from rows as they are stored to current embeddings; needs a correcting policy."""
        mean, std = self.drift_moments.unbind()
        if self.config.drift.anchor != "memory":
            return std, mean
        sharded = self.config.distributed == "sharded" and ranks()[0] > 1
        reduce = sum_over_ranks if sharded else (lambda tensor: tensor)
        stored_mean, stored_std = self.queue.moments(std.dtype, self.config.floor, reduce)
        scale = std / stored_std
        return scale, mean - scale * stored_mean

    def _put(self, rows: Rows, *, copy: bool) -> None:
        """Leave this rank's share of `rows` at the door of the queue; `copy` where the values are somebody else's."""
        number = len(rows.labels)
        if self.config.distributed == "sharded":
            world, rank = ranks()
            first = (rank - int(self.stored)) % world
            rows = Rows(*(column[first::world].contiguous() for column in rows))
        self.queue.put(rows, int(self.step), int(self.cohorts), copy=copy)
        self.stored.add_(number)
        self.cohorts.add_(1)

    def _reference(self, anchor_ids: Tensor) -> Reference:
        """Return the rows in the ring, and what makes them current."""
        queue, step, limit = self.queue, int(self.step), self.config.age_limit
        columns: tuple[Tensor, ...] = (queue.rows, queue.labels, queue.sample_ids, queue.inserted)
        count = int(queue.count) if step >= self.config.warmup_steps else 0
        if count < queue.capacity:
            columns = tuple(column[:count] for column in columns)
        rows, labels, sample_ids, inserted = columns
        scale, shift = self.affine() if self.config.drift.corrects else (None, None)
        mask = None if limit is None else (step - inserted <= limit).to(rows.device, non_blocking=True)
        return Reference(
            rows=rows,
            labels=labels,
            sample_ids=sample_ids,
            inserted=inserted,
            mask=mask,
            scale=scale,
            shift=shift,
            renormalise=self.config.normalises,
            anchor_ids=anchor_ids,
            step=step,
        )

    def _set(self, state: DriftState) -> None:
        self._buffers.update(zip(STATE, state, strict=True))
