"""Where the tokens of a batch belong, and the rows that come out of a stack that does not keep them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longview.data.padding import vacant_sequences
from longview.ops.attention.work import declare_longest, longest_of
from longview.ops.jagged import (
    counts_within,
    history_ages,
    newest_members,
    offsets_from_lengths,
    rows_where,
    take_rows,
)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch belong. A sequence is `[context | history | targets]`, oldest event first.

    Attributes:
        offsets: (B + 1,) int64; sequence b holds the tokens offsets[b]:offsets[b+1].
        max_length: the longest sequence, context and targets included (a bound will do).
        timestamps: (T,) int64 of every token, or None.
        context_lengths, target_lengths: (B,) int64, tokens in front and at the end that are no history; None = none.
        actions: (T,) int64 action bits of every token, or None; read where behaviour streams are parted.
        host_offsets: `offsets` on the CPU where known; saves a GPU a synchronisation when tokens are selected.
        num_context: context tokens of all sequences.
        num_targets: targets of all sequences where the host knows; saves a synchronisation, too.
        sizes: how many rows each selection keeps, by its name, whatever is in the batch: what is missing is filled
            with the last token, in sequences behind the others. None: as many as there are.
    """

    offsets: Tensor
    max_length: int
    timestamps: Tensor | None = None
    context_lengths: Tensor | None = None
    target_lengths: Tensor | None = None
    actions: Tensor | None = None
    host_offsets: Tensor | None = None
    num_context: int = 0
    num_targets: int | None = None
    sizes: Mapping[str, int] | None = None

    @property
    def history_only(self) -> bool:
        """Whether no sequence has context or targets."""
        return self.context_lengths is None and self.target_lengths is None

    def history_lengths(self) -> Tensor:
        """Return the history tokens of each sequence, (B,) int64."""
        lengths = self.offsets.diff()
        for other in (self.context_lengths, self.target_lengths):
            lengths = lengths if other is None else lengths - other
        return lengths

    def newest_rows(self) -> Tensor:
        """Return the row of the newest history token of each sequence that has one, (B,) int64."""
        newest = self.offsets[1:] - 1
        return newest if self.target_lengths is None else newest - self.target_lengths

    def members(self, total: int, length: int) -> Tensor:
        """Return which tokens are context, targets or of the newest `length` of their history, (total,) bool."""
        return newest_members(self.offsets, total, length, self.context_lengths, self.target_lengths)

    def newest(self, total: int, length: int) -> tuple[Tensor, Layout]:
        """Return the rows of the newest `length` history tokens, with all context and targets, and their layout.

        `total` is the number of tokens. A GPU is waited for unless `sizes` are fixed, or `host_offsets` are known and
        all is history.
        """
        members = self.members(total, length)

        def count() -> int:
            offsets = self.offsets if self.offsets.device.type == "cpu" else self.host_offsets
            known = self.history_only and offsets is not None
            return int(offsets.diff().clamp(max=length).sum() if known and offsets is not None else members.sum())

        longest = min(self.max_length, length) if self.history_only else self.max_length
        return self.where(members, longest, name="newest", count=count, vacant=min(length, longest))

    def without_targets(self, total: int) -> tuple[Tensor, Layout]:
        """Return the rows that are no targets and their layout."""
        if self.target_lengths is None:
            raise ValueError("a layout without targets keeps all rows")
        members = history_ages(self.offsets, total, self.target_lengths) >= 0
        count = int(members.sum()) if self.num_targets is None else total - self.num_targets
        rows, layout = self._taken(members, rows_where(members, count), self.max_length)
        return rows, replace(layout, target_lengths=None, num_targets=0)

    def where(
        self, members: Tensor, max_length: int, *, name: str, count: Callable[[], int], vacant: int
    ) -> tuple[Tensor, Layout]:
        """Return the rows that are true in `members` and their layout; context and targets must all be.

        Args:
            members: (total,) bool.
            max_length: of what is left of a sequence.
            name: of the selection in `sizes`.
            count: says how many members there are; asked where no `sizes` are fixed.
            vacant: the most rows of a sequence of padding where they are.
        """
        if self.sizes is None:
            return self._taken(members, rows_where(members, count()), max_length)
        size = self.sizes[name]
        rows, layout = self._taken(members, rows_where(members, size, members.numel() - 1), max_length)
        return rows, layout.filled_up(size, vacant)

    def filled_up(self, size: int, longest: int) -> Layout:
        """Return the layout with sequences of history behind it, `longest` rows each, up to `size` rows in all."""
        numbers = torch.arange(1, vacant_sequences(size, longest) + 1, device=self.offsets.device)
        ends = (self.offsets[-1] + longest * numbers).clamp(max=size)
        none = torch.zeros_like(numbers)
        targets = self.target_lengths
        return replace(
            self,
            offsets=torch.cat([self.offsets, ends]),
            context_lengths=None if self.context_lengths is None else _with_none(self.context_lengths, none),
            target_lengths=None if targets is None else torch.cat([targets, none]),
        )

    def scoped(self, name: str) -> Mapping[str, int] | None:
        """Return the sizes of the selections within the part `name`."""
        if self.sizes is None:
            return None
        prefix = f"{name}."
        return {key.removeprefix(prefix): size for key, size in self.sizes.items() if key.startswith(prefix)}

    def _taken(self, members: Tensor, rows: Tensor, max_length: int) -> tuple[Tensor, Layout]:
        taken = {name: value[rows] for name in ("timestamps", "actions") if (value := getattr(self, name)) is not None}
        offsets = offsets_from_lengths(counts_within(members, self.offsets))
        return rows, replace(self, offsets=offsets, max_length=max_length, host_offsets=None, **taken)


def _with_none(context_lengths: Tensor, none: Tensor) -> Tensor:
    return declare_longest(torch.cat([context_lengths, none]), longest_of(context_lengths))


@dataclass(frozen=True)
class Extension:
    """New tokens behind cached ones, a sequence at a time: what attention to both needs besides keys and values.

    Attributes:
        new_rows: (new tokens,) int64, which token of the joined sequences each new one is, ascending.
        query_offsets, offsets: (B + 1,) int64 of the new tokens, and of all.
        context_lengths, target_lengths: (B,) as in `Layout`.
        places: (tokens,) int64, where each stands in its whole history; context lies before 0.
        timestamps: (tokens,) int64, or None where no bias asks.
    """

    new_rows: Tensor
    query_offsets: Tensor
    offsets: Tensor
    context_lengths: Tensor | None
    target_lengths: Tensor | None
    places: Tensor
    timestamps: Tensor | None


@dataclass(frozen=True)
class Hidden:
    """What a stack gives: one vector for each token it kept.

    Attributes:
        values: (kept, width).
        layout: where the kept tokens belong.
        rows: (kept,) int64, which token of the input each is, ascending; None = all of them.
    """

    values: Tensor
    layout: Layout
    rows: Tensor | None = None

    def targets(self, count: int) -> Tensor:
        """Return the rows of all targets, (count, width), in order; `count` is how many there are."""
        members = history_ages(self.layout.offsets, len(self.values), self.layout.target_lengths) < 0
        return take_rows(self.values, rows_where(members, count))

    def newest(self) -> Tensor:
        """Return the row of the newest history token of each sequence that has one, (B, width)."""
        return self.values[self.layout.newest_rows()]
