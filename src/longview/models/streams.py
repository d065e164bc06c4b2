"""Mixture of transducers: a stack for each stream of behaviour, fused position by position.

An action-bit map says which events a stream reads; an event may belong to several streams, or to none. The input
embedding is shared and made before the streams part, so a position or a time gap counts in the whole history and
tells a stream nothing of what the others will do. The vector of position i is fused from each stream's newest event at
or before i (a learned vector where there is none yet), so nothing after i has a say.

Source: ULTRA-HSTU, arXiv 2602.16986, which gives no formula for the fusion; ours is the sum of the streams, plus (for
`concat`) a two-layer network of their concatenation. One stream alone is not fused.
Shape suffixes: T tokens of all sequences, B sequences, S streams, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from longview.config import Config
from longview.data.actions import MAX_ACTIONS, bits_of
from longview.data.padding import fixed_size
from longview.errors import InputError
from longview.models.hstu import HSTUStack
from longview.models.layer_config import AttentionConfig
from longview.models.layout import Hidden, Layout
from longview.models.stream_parts import NONE, Draft, Part, Tokens
from longview.models.topology import TruncatedStack, TruncationConfig, look_up
from longview.ops.jagged import offsets_from_lengths, take_rows

AVAILABLE = "all streams"  # the selection of tokens that every stream has a vector for; no stream can be called so
ALL = (1 << MAX_ACTIONS) - 1


class StreamConfig(Config):
    """One stream of behaviour; what is left out is the model's."""

    actions: tuple[int | str, ...] = Field(
        min_length=1,
        description="names (or bits) of the actions that belong here; none = events without any, all = every event",
    )
    layers: int | None = Field(default=None, ge=1, description="default model.layers")
    max_length: int | None = Field(default=None, ge=1, description="newest events of the stream that are read")
    attention: AttentionConfig | None = Field(default=None, description="default model.attention")
    truncation: TruncationConfig | None = Field(default=None, description="default model.truncation")

    @field_validator("actions")
    @classmethod
    def _bits_fit(cls, actions: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for action in actions:
            if isinstance(action, int) and not 0 <= action < MAX_ACTIONS:
                raise ValueError(f"action bit {action} is not one of 0 to {MAX_ACTIONS - 1}")
        return actions

    def rule(self, name: str, known: Sequence[str]) -> Rule:
        """Return which events belong to the stream; `known` are the names of the data's actions, bit 0 first.

        Raises:
            InputError: an action the data does not have; the message names those it has.
        """
        special = {action for action in self.actions if action in ("all", "none") and action not in known}
        named = [action for action in self.actions if action not in special]
        bits = bits_of(named, known, f"model.streams.{name}.actions", ", and none and all")
        return Rule(ALL if "all" in special else bits, bool(special))


@dataclass(frozen=True)
class Rule:
    """Events that belong to a stream: with any of the action `bits`, and with `without` those that have no action."""

    bits: int
    without: bool = False

    def members(self, actions: Tensor) -> Tensor:
        """Return which of the events with these action bits belong, bool."""
        found = (actions & self.bits) != 0
        return found | (actions == 0) if self.without else found


class Fusion(nn.Module):
    """One vector from those of all streams: their sum, plus for `concat` a network of all of them (zero at first)."""

    def __init__(self, kind: Literal["concat", "sum"], streams: int, width: int) -> None:
        super().__init__()
        self.mix = None
        if kind == "concat" and streams > 1:
            first, last = nn.Linear(streams * width, width), nn.Linear(width, width)
            nn.init.xavier_uniform_(first.weight)
            for zero in (first.bias, last.weight, last.bias):
                nn.init.zeros_(zero)
            self.mix = nn.Sequential(nn.LayerNorm(streams * width, eps=1e-6), first, nn.SiLU(), last)

    def forward(self, streams: list[Tensor]) -> Tensor:
        """Return (T, width) of the streams' (T, width)."""
        fused = streams[0]
        for other in streams[1:]:
            fused = fused + other
        return fused if self.mix is None else fused + self.mix(torch.cat(streams, dim=-1)).to(fused.dtype)


class StreamedStack(nn.Module):
    """Stacks of several streams over one input.

    Args:
        stacks: of each stream, by name.
        rules: which events belong to each.
        limits: newest events of each that are read, or None for all.
    """

    def __init__(
        self,
        stacks: Mapping[str, HSTUStack | TruncatedStack],
        rules: Mapping[str, Rule],
        limits: Mapping[str, int | None],
        fusion: Literal["concat", "sum"],
        width: int,
    ) -> None:
        super().__init__()
        self.streams = nn.ModuleDict(stacks)
        self.rules, self.limits = dict(rules), dict(limits)
        self.empty = nn.Parameter(torch.randn(len(stacks), width) * 0.02)
        self.fusion = Fusion(fusion, len(stacks), width)

    def hidden(self, x_TD: Tensor, layout: Layout) -> Hidden:
        """Return the fused vectors of the tokens for which every stream has one (`Hidden.rows`; None = all).

        Raises:
            InputError: no actions in the batch.
        """
        parts, rows, kept = self._parted(layout, len(x_TD))
        found = []
        for (_, stack), part, empty in zip(self.stacks(), parts, self.empty, strict=True):
            values = stack.hidden(take_rows(x_TD, part.rows), part.layout).values if len(part.rows) else x_TD[:0]
            place = part.place if rows is None else part.place[rows]
            found.append(_vectors(values, empty, place))
        return Hidden(self.fusion(found), kept, rows)

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width), fused from the newest event of every stream."""
        parts = dict(zip(self.streams, self.parts(layout, len(x_TD)), strict=True))
        found = {
            name: stack.newest(take_rows(x_TD, parts[name].rows), parts[name].layout)
            if len(parts[name].rows)
            else x_TD.new_zeros(len(parts[name].lengths), x_TD.shape[1])
            for name, stack in self.stacks()
        }
        return self.fuse_newest(found, {name: part.lengths > 0 for name, part in parts.items()})

    def fuse_newest(self, newest: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> Tensor:
        """Return (B, width) of each stream's newest vectors (B, width) and whether it has an event, (B,) bool."""
        found = [
            torch.where(read[name][:, None], newest[name], empty.to(newest[name].dtype))
            for name, empty in zip(self.streams, self.empty, strict=True)
        ]
        return self.fusion(found)  # type: ignore[no-any-return]

    def parts(self, layout: Layout, total: int) -> list[Part]:
        """Return what each stream reads of a batch of `total` tokens."""
        return self._parted(layout, total, newest_only=True)[0]

    def stacks(self) -> list[tuple[str, HSTUStack | TruncatedStack]]:
        """Return the stacks by name."""
        return [(name, stack) for name, stack in self.streams.items() if isinstance(stack, HSTUStack | TruncatedStack)]

    def reach(self, name: str) -> int | None:
        """Return how many of the newest events of a stream have an output; None = all."""
        stack, limit = self.streams[name], self.limits[name]
        if not isinstance(stack, TruncatedStack):
            return limit
        return stack.length if limit is None else min(limit, stack.length)

    def _parted(
        self, layout: Layout, total: int, *, newest_only: bool = False
    ) -> tuple[list[Part], Tensor | None, Layout]:
        """Return the parts of the streams, the tokens all have a vector for, and their layout.

        A GPU is waited for once, for the numbers of events of each stream; not at all where sizes are fixed.
        """
        if layout.actions is None:
            raise InputError(
                "model.streams parts events by their actions, and this batch has none: prepare the data with "
                "--action COLUMN, or give the actions with the events"
            )
        tokens = Tokens.of(layout, total)
        drafts = [tokens.draft(self.rules[name].members(layout.actions), self.limits[name]) for name in self.streams]
        available = None if newest_only else self._available(drafts, tokens)
        if layout.sizes is None:  # all the host asks for at once
            counted = tokens.history.new_zeros(1) if available is None else available.sum()[None]
            known = torch.cat([*(draft.kept for draft in drafts), tokens.history, counted]).cpu()
            *kept, history = known[:-1].view(len(drafts) + 1, -1)
            drafts = [draft.told(own, total - int(history.sum())) for draft, own in zip(drafts, kept, strict=True)]
            counted = known[-1]
        parts = [draft.part(tokens, name, self.reach(name)) for name, draft in zip(self.streams, drafts, strict=True)]
        if available is None:
            return parts, None, layout
        longest = layout.max_length
        rows, rest = layout.where(available, longest, name=AVAILABLE, count=lambda: int(counted), vacant=longest)
        return parts, rows, rest

    def _available(self, drafts: list[Draft], tokens: Tokens) -> Tensor | None:
        """Return which tokens have a vector of every stream, (total,) bool; None where all have."""
        cut = {name: reach for name in self.streams if (reach := self.reach(name)) is not None}
        found = None
        for name, draft in zip(self.streams, drafts, strict=True):
            if name in cut and cut[name] < tokens.layout.max_length:
                within = draft.within(cut[name], tokens)
                found = within if found is None else found & within
        return found

    def sizes(self, layout: Layout) -> dict[str, int]:
        """Return how many rows the selections of `hidden` are to keep of a padded batch, whose layout is on the CPU."""
        assert layout.actions is not None, "training batches of streams carry actions"
        tokens = Tokens.of(layout, len(layout.actions))
        drafts = {n: tokens.draft(self.rules[n].members(layout.actions), self.limits[n]) for n in self.streams}
        found = {}
        for name, stack in self.stacks():
            lengths = layout.offsets.diff() - tokens.history + drafts[name].kept
            found[name] = fixed_size(int(lengths.sum()))
            if isinstance(stack, TruncatedStack):
                own = replace(
                    layout, offsets=offsets_from_lengths(lengths), max_length=drafts[name].longest(layout)
                ).filled_up(found[name], drafts[name].most)
                found |= {f"{name}.{key}": size for key, size in stack.sizes(own).items()}
        available = self._available(list(drafts.values()), tokens)
        return found if available is None else {**found, AVAILABLE: fixed_size(int(available.sum()))}


def _vectors(values: Tensor, empty: Tensor, place: Tensor) -> Tensor:
    """Return the row of `values` at each place, and `empty` where it is -1; its gradient is summed in one order."""
    table = torch.cat([values, empty.to(values.dtype)[None]])
    rows = torch.where(place == NONE, len(values), place)
    return look_up(table, rows)
