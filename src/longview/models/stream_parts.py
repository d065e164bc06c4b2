"""Which events of a batch belong to a stream of behaviour, and where each token finds that stream's vector.

Shape suffixes: T tokens of all sequences, B sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longview.models.layout import Layout
from longview.ops.jagged import counts_within, history_ages, offsets_from_lengths, positions, segment_ids

NONE = -1  # no event of the stream yet


@dataclass(frozen=True)
class Part:
    """What one stream reads of a batch, and where each token of the batch finds its vector.

    Attributes:
        rows: the tokens it reads; context and targets are in every stream.
        layout: where they belong.
        place: (T,) row of the stream's output for each token; -1 = no event of the stream yet.
        lengths: (B,) its events in each history.
    """

    rows: Tensor
    layout: Layout
    place: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch: sequence, place in it, whether history; and (B,) history and context lengths."""

    layout: Layout
    segments: Tensor
    places: Tensor
    is_history: Tensor
    history: Tensor
    context: Tensor

    @classmethod
    def of(cls, layout: Layout, total: int) -> Tokens:
        segments, places = segment_ids(layout.offsets, total), positions(layout.offsets, total)
        history = layout.history_lengths()
        context = torch.zeros_like(history) if layout.context_lengths is None else layout.context_lengths
        is_history = history_ages(layout.offsets, total, layout.target_lengths) >= 0
        return cls(layout, segments, places, is_history & (places >= context[segments]), history, context)

    def draft(self, belongs: Tensor, limit: int | None) -> Draft:
        """Return the stream of the history events that are true in `belongs`, cut to its newest `limit`."""
        belongs = belongs & self.is_history
        running = torch.cat([self.history.new_zeros(1), belongs.cumsum(0)])
        number = running[1:] - running[self.layout.offsets[:-1]][self.segments]
        lengths = counts_within(belongs, self.layout.offsets)
        kept = lengths if limit is None else lengths.clamp(max=limit)
        most = self.layout.max_length
        return Draft(belongs, number, lengths, kept, most if limit is None else min(limit, most))


@dataclass(frozen=True)
class Draft:
    """A stream, whose size the host may not know yet.

    Attributes:
        belongs: (T,) bool, its events.
        number: (T,) its events in the history so far, a token's own included.
        lengths: (B,) its events.
        kept: (B,) those that are read.
        most: no history has more of them.
        host_kept: `kept` on the host.
        others: the tokens that are no history.
    """

    belongs: Tensor
    number: Tensor
    lengths: Tensor
    kept: Tensor
    most: int
    host_kept: Tensor | None = None
    others: int = 0

    def told(self, kept: Tensor, others: int) -> Draft:
        """Return the stream with what the host has learned of it."""
        return replace(self, host_kept=kept, others=others)

    def within(self, reach: int, tokens: Tokens) -> Tensor:
        """Return the tokens that have an output where only the newest `reach` events have one."""
        beyond = (self.lengths - reach)[tokens.segments]
        return ~tokens.is_history | (self.number == 0) | (self.number > beyond)

    def part(self, tokens: Tokens, name: str, reach: int | None) -> Part:
        """Return what the stream called `name` reads."""
        layout, segments = tokens.layout, tokens.segments
        read = self.belongs & (self.number > (self.lengths - self.kept)[segments])
        rows, own = layout.where(
            read | ~tokens.is_history, self.longest(layout), name=name, count=self._count, vacant=self.most
        )
        own = replace(own, sizes=layout.scoped(name))
        if layout.history_only and self.host_kept is not None:
            own = replace(own, host_offsets=offsets_from_lengths(self.host_kept))
        out = self.lengths if reach is None else self.lengths.clamp(max=reach)
        lengths = layout.offsets.diff()
        starts = offsets_from_lengths(lengths - tokens.history + out)
        event = (starts[:-1] + tokens.context - self.lengths + out)[segments] + self.number - 1
        event = torch.where(self.number == 0, NONE, event.clamp(min=0))
        # Context lies in front and targets behind, whatever is cut out between.
        in_front = tokens.places < tokens.context[segments]
        shift = torch.where(in_front, starts[:-1][segments], (starts[1:] - lengths)[segments])
        return Part(rows, own, torch.where(tokens.is_history, event, shift + tokens.places), self.lengths)

    def _count(self) -> int:
        assert self.host_kept is not None, "sizes are fixed, or the host has been told"
        return int(self.host_kept.sum()) + self.others

    def longest(self, layout: Layout) -> int:
        """Return a bound of what the stream leaves of a sequence."""
        if not layout.history_only:
            return layout.max_length
        return self.most if self.host_kept is None or not len(self.host_kept) else int(self.host_kept.max())
