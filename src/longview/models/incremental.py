"""The incremental form of a whole model: read a history once, then append events and score candidates.

    incremental = Incremental(model)          # InputError where the model cannot; `why_not_incremental` says why
    state = incremental.prefill(histories)
    state = incremental.append(state, events)             # O(new events x (K1 + K2)) a layer
    incremental.vectors(state)                            # = model.user_vectors of the whole histories
    incremental.predict(state, candidates)                # = ranker.predict of candidates behind whole histories

A state is exact: what it gives is what a full pass over all events would give (in float32 to about 1e-6, as sums are
taken in another order). Nothing here looks at parameters: a state belongs to the weights it was made with.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.errors import InputError
from longview.models import cached_stack
from longview.models.cached_stack import Stack, Tokens
from longview.models.embeddings import Earlier
from longview.models.heads import MultiTaskHead
from longview.models.layout import Layout
from longview.models.ranker import Ranker
from longview.models.retriever import Retriever
from longview.models.sasrec import SASRecStack
from longview.models.state import StackState, UserState
from longview.models.streams import StreamedStack

HISTORY = "history"  # the name of the only stack of a model without streams
MICRO_BATCH = 4096  # candidates


def why_not_incremental(model: Retriever) -> str | None:
    """Return why no state of users can be kept for `model`, in a sentence with the remedy, or None where it can."""
    embedding = model.config.embedding
    if isinstance(model.stack, SASRecStack):
        return "kind sasrec has no incremental form: set model.kind hstu"
    if embedding.positions in (True, "newest"):
        return (
            "model.embedding.positions count back from the newest event, so every event moves all earlier ones: set "
            "positions start or false"
        )
    if embedding.time_gaps == "newest":
        return (
            "model.embedding.time_gaps newest measures to the newest event, so every event changes all earlier ones: "
            "set time_gaps previous or none"
        )
    for name, stack in _stacks(model).items():
        reason = cached_stack.why_not_appended(stack)
        if reason is not None:
            return reason if name == HISTORY else f"stream {name}: {reason}"
    return None


class Incremental:
    """Keeps states of users for `model`, which must be in evaluation mode.

    Raises:
        InputError: `why_not_incremental`.
    """

    def __init__(self, model: Retriever) -> None:
        reason = why_not_incremental(model)
        if reason is not None:
            raise InputError(f"this model cannot be served incrementally: {reason}")
        self.model, self.stacks = model, _stacks(model)

    @torch.no_grad()
    def prefill(self, batch: JaggedBatch) -> UserState:
        """Return the state after the histories of `batch`; a user without events gets a state to append to."""
        self._check_mode()
        x_TD, layout = self.model.sequences(batch)
        if layout.target_lengths is not None:
            raise InputError("prefill reads histories: leave the candidates to `candidates`")
        streams = {
            name: cached_stack.prefill(self.stacks[name], x_TD if rows is None else x_TD[rows], own)
            for name, rows, own in self._parts(layout, len(x_TD))
        }
        return UserState(layout.history_lengths(), _last_times(batch), streams)

    @torch.no_grad()
    def append(self, state: UserState, events: JaggedBatch) -> UserState:
        """Return the state after `events`, one jagged row a user of the state (none for some, perhaps).

        Raises:
            InputError: another number of users; a stream that would outgrow its `max_length`, whose full pass drops
                its oldest events: prefill again.
        """
        self._check_mode()
        _check_alike(state, events)
        tokens = self.embedded(events, state.lengths, state.timestamps)
        layout = Layout(events.offsets, events.max_length, events.timestamps, actions=events.actions)
        streams = {}
        for name, rows, own in self._parts(layout, events.num_tokens):
            part = tokens if rows is None else Tokens(tokens.x[rows], own.offsets, own.timestamps)
            self._check_limit(name, state.streams[name], part.offsets)
            streams[name] = cached_stack.append(self.stacks[name], state.streams[name], part)
        stamps = state.timestamps
        if stamps is not None:
            newest = _last_times(events)
            assert newest is not None, "checked"
            stamps = torch.where(events.offsets.diff() > 0, newest, stamps)
        return UserState(state.lengths + events.offsets.diff(), stamps, streams)

    def vectors(self, state: UserState) -> Tensor:
        """Return (users, width) float32, what `model.user_vectors` gives for the whole histories.

        Raises:
            InputError: a user without any event.
        """
        return self.queries(state).float()

    @torch.no_grad()
    def queries(self, state: UserState) -> Tensor:
        """Return `vectors` in the precision of the model."""
        self._check_mode()
        if isinstance(self.model, Ranker) and not self.model.retrieves:
            raise InputError(
                "this model was trained to rank candidates, not to find items in the catalogue: use predict, or train "
                "one with task: both"
            )
        empty = (state.lengths == 0).nonzero()
        if len(empty):
            raise InputError(
                f"user {int(empty[0])} of this state has no event yet, so there is nothing to recommend from: append "
                "one, or recommend what is popular"
            )
        found = {name: cached_stack.newest(self.stacks[name], state.streams[name]) for name in self.stacks}
        if isinstance(self.model.stack, StreamedStack):
            read = {name: state.streams[name].lengths > 0 for name in self.stacks}
            return self.model.finish(self.model.stack.fuse_newest(found, read))
        return self.model.finish(found[HISTORY])

    @torch.no_grad()
    def candidates(self, state: UserState, batch: JaggedBatch, *, micro_batch: int = MICRO_BATCH) -> Tensor:
        """Return (candidates, width), the stack's vectors of candidates behind the histories; the state stays.

        `batch` holds the candidates of each user of the state (`items`, `offsets`, and `timestamps` of the request
        where the model reads time), which are taken `micro_batch` at a time.

        Raises:
            InputError: a model whose state does not hold what candidates see; the message says what to set.
        """
        self.check_candidates(state, batch)
        batch = replace(batch, target_lengths=batch.offsets.diff())
        tokens = self.embedded(batch, state.lengths, state.timestamps)
        return self.fused(
            [
                cached_stack.candidates(stack, state.streams[name], tokens, micro_batch)
                for name, stack in self.stacks.items()
            ]
        )

    @torch.no_grad()
    def predict(self, state: UserState, batch: JaggedBatch, *, micro_batch: int = MICRO_BATCH) -> Tensor:
        """Return (candidates, tasks) float64, what `Ranker.predict` gives for candidates behind whole histories.

        Raises:
            InputError: as `candidates`, or a model without a head.
        """
        self.head()
        return self.predictions(self.candidates(state, batch, micro_batch=micro_batch), batch.items)

    def head(self) -> MultiTaskHead:
        """Return what ranks candidates.

        Raises:
            InputError: there is none.
        """
        if not isinstance(self.model, Ranker):
            raise InputError(
                "this model finds items in the catalogue and has no head to rank candidates with: take the inner "
                "product of vectors(state) and item_vectors(), or train one with task: ranking"
            )
        return self.model.head

    def predictions(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Return (candidates, tasks) float64 of the `candidates` vectors of `items` (candidates,)."""
        head = self.head()
        return head.predictions(head(self.model.final_norm(vectors), items))

    def embedded(self, batch: JaggedBatch, lengths: Tensor, timestamps: Tensor | None) -> Tokens:
        """Return the tokens of events or candidates behind histories of such lengths and last times."""
        return Tokens(self.model.stream(batch, Earlier(lengths, timestamps)), batch.offsets, batch.timestamps)

    def fused(self, found: list[Tensor]) -> Tensor:
        """Return the candidates' vectors of those of each stack."""
        if not isinstance(self.model.stack, StreamedStack):
            return found[0]
        fused: Tensor = self.model.stack.fusion(found)
        return fused

    def check_candidates(self, state: UserState, batch: JaggedBatch) -> None:
        """Raise an InputError where `candidates` would."""
        self._check_mode()
        for name, stack in self.stacks.items():
            reason = cached_stack.why_no_candidates(stack)
            if reason is not None:
                where = "" if name == HISTORY else f"stream {name}: "
                raise InputError(f"candidates cannot be scored against a state of this model: {where}{reason}")
        _check_alike(state, batch)

    def _parts(self, layout: Layout, total: int) -> list[tuple[str, Tensor | None, Layout]]:
        """Return what each stack reads of a batch: name, rows (None = all) and layout."""
        if not isinstance(self.model.stack, StreamedStack):
            return [(HISTORY, None, layout)]
        parts = self.model.stack.parts(layout, total)
        return [(name, part.rows, part.layout) for name, part in zip(self.stacks, parts, strict=True)]

    def _check_limit(self, name: str, state: StackState, offsets: Tensor) -> None:
        stack = self.model.stack
        limit = stack.limits[name] if isinstance(stack, StreamedStack) else None
        if limit is None:
            return
        over = ((state.lengths + offsets.diff() > limit) & (offsets.diff() > 0)).nonzero()
        if len(over):
            raise InputError(
                f"stream {name} of user {int(over[0])} would hold more than its max_length of {limit} events, and a "
                "full pass drops the oldest: prefill again from the events, or leave model.streams max_length out"
            )

    def _check_mode(self) -> None:
        if self.model.training:
            raise InputError("states are kept in evaluation mode: call model.eval() first")


def _stacks(model: Retriever) -> dict[str, Stack]:
    stack = model.stack
    if isinstance(stack, StreamedStack):
        return dict(stack.stacks())
    assert not isinstance(stack, SASRecStack), "refused before"
    return {HISTORY: stack}


def _check_alike(state: UserState, batch: JaggedBatch) -> None:
    if batch.num_sequences != state.num_users:
        raise InputError(
            f"{batch.num_sequences} users' events for a state of {state.num_users}: give each user of the state a "
            "row, empty where nothing is new"
        )
    if (state.timestamps is None) != (batch.timestamps is None):
        given, had = ("no times", "had") if batch.timestamps is None else ("times", "had none")
        raise InputError(f"these events have {given} and those of the state {had}: give both alike")


def _last_times(batch: JaggedBatch) -> Tensor | None:
    """Return (users,) the time of the newest event of each; of an empty history, 0."""
    if batch.timestamps is None:
        return None
    lengths = batch.offsets.diff()
    newest = batch.offsets.new_zeros(batch.num_sequences)
    rows = batch.offsets[1:][lengths > 0] - 1
    return newest.masked_scatter(lengths > 0, batch.timestamps[rows])
