"""Useful floating-point operations of a model in closed form, from its configuration and the lengths of sequences.

A multiply-add is two operations. Counted are the matrix products: projections, attention between the pairs that the
mask lets see each other (`MaskSpec.pairs`, however a kernel tiles them), the fusion of streams, what merges actions,
and inner products with items. Not counted: sums, norms, activations, lookups, softmax, the optimiser, and whatever a
kernel computes twice or throws away. The backward pass of a product is two products, and that of attention four for its
two, so that a training step is three forward passes exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from longview.data.schema import Schema
from longview.errors import InputError
from longview.models.actions import SIDE_WIDTH
from longview.models.heads import HeadConfig
from longview.models.layer_config import AttentionConfig
from longview.models.retriever import RetrieverConfig
from longview.models.topology import TruncationConfig
from longview.ops.attention import MaskSpec

BACKWARD = 2  # products of the backward pass for one of the forward pass


@dataclass(frozen=True)
class Flops:
    """Operations by what they are for; `scores` are inner products with items, and heads of candidates."""

    projections: int = 0
    attention: int = 0
    merging: int = 0
    scores: int = 0

    @property
    def total(self) -> int:
        return self.projections + self.attention + self.merging + self.scores

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, name) + getattr(other, name) for name in PARTS))

    def times(self, factor: int) -> Flops:
        """Return every part times `factor`."""
        return Flops(*(factor * getattr(self, name) for name in PARTS))

    def to_dict(self) -> dict[str, int]:
        """Return the parts and `total`."""
        return {**{name: getattr(self, name) for name in PARTS}, "total": self.total}


PARTS = ("projections", "attention", "merging", "scores")


@dataclass(frozen=True)
class Lengths:
    """Tokens of one sequence as the model reads it, `[context | history | targets]`.

    Attributes:
        history: events, at most `max_length`.
        context, targets: other tokens.
        streams: events of each stream of behaviour, before a stream's own limit (for models that have streams).
        fused: history tokens that all streams have a vector for; None = all of the history.
    """

    history: int
    context: int = 0
    targets: int = 0
    streams: Mapping[str, int] = field(default_factory=dict)
    fused: int | None = None


def training_flops(
    model: RetrieverConfig,
    sequences: Iterable[Lengths],
    *,
    scored: int,
    schema: Schema | None = None,
) -> Flops:
    """Return the operations of a training step for next-item prediction on `sequences`.

    Args:
        model: the configuration.
        sequences: of the batch.
        scored: items that each position is scored against: the catalogue for a full softmax, 1 + negatives for a
            sampled one.
        schema: what the model reads of an event beside its item.

    Raises:
        InputError: a model of streams, and sequences that do not say how many events each stream has.
    """
    forward = Flops()
    for lengths in sequences:
        rows = _trained_rows(model, lengths)
        forward += forward_flops(model, lengths, schema=schema) + Flops(scores=2 * model.width * rows * scored)
    return forward.times(1 + BACKWARD)


def request_flops(
    model: RetrieverConfig,
    lengths: Lengths,
    *,
    candidates: int,
    schema: Schema | None = None,
    head: HeadConfig | None = None,
    tasks: int = 0,
) -> Flops:
    """Return the operations of answering one request from nothing, without any state kept of the user.

    Without a `head`: the vector of the newest event (the last layer projects all keys and values but one query), and
    its inner product with `candidates` items. With one: a pass over history and `lengths.targets` candidates, and the
    head with its `tasks` at each.
    """
    if head is None:
        encoded = forward_flops(model, lengths, schema=schema, newest_only=True)
        return encoded + Flops(scores=2 * model.width * candidates)
    each = 2 * _chain([model.width, *head.trunk])
    shared = head.trunk[-1] if head.trunk else model.width
    each += 2 * tasks * _chain([shared, *head.tower, 1])
    return forward_flops(model, lengths, schema=schema) + Flops(scores=lengths.targets * each)


def forward_flops(
    model: RetrieverConfig, lengths: Lengths, *, schema: Schema | None = None, newest_only: bool = False
) -> Flops:
    """Return the operations of the stack on one sequence: vectors of all tokens, or of the newest event alone."""
    merging = lengths.history * _merging_of_event(model, schema)
    if model.kind == "sasrec":
        return _sasrec(model, lengths.history) + Flops(merging=merging)
    if not model.streams:
        stack = _stack(model, model.layers, model.attention, model.truncation, lengths, newest_only)
        return stack + Flops(merging=merging)
    found = Flops(merging=merging + _fusion(model, lengths, newest_only))
    for name, stream in model.streams.items():
        events = _events(lengths, name, model)
        own = Lengths(min(events, stream.max_length or events), lengths.context, lengths.targets)
        attention, truncation = stream.attention or model.attention, stream.truncation or model.truncation
        if own.history + own.context + own.targets:
            found += _stack(model, stream.layers or model.layers, attention, truncation, own, newest_only)
    return found


def lengths_of(
    model: RetrieverConfig, batch: Any, action_names: Sequence[str] = (), *, context: int = 0
) -> list[Lengths]:
    """Return the lengths of each sequence of a batch (`longview.data.batches.JaggedBatch`), without candidates.

    `action_names` are those of the data, bit 0 first, for models of streams; `context` tokens go in front of each.
    """
    sizes = batch.offsets.diff().tolist()
    if not model.streams:
        return [Lengths(size, context) for size in sizes]
    if batch.actions is None:
        raise InputError("model.streams parts events by their actions, and this batch has none")
    rules = {name: stream.rule(name, action_names) for name, stream in model.streams.items()}
    found = []
    for actions in batch.actions.split(sizes):
        members = {name: rule.members(actions) for name, rule in rules.items()}
        kept = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
        for name, belongs in members.items():
            stream = model.streams[name]
            truncation = stream.truncation or model.truncation
            reach = None if truncation is None else truncation.length
            limits = [n for n in (stream.max_length, reach) if n is not None]
            if limits:
                number = belongs.cumsum(0)
                kept &= (number == 0) | (number > int(belongs.sum()) - min(limits))
        counts = {name: int(belongs.sum()) for name, belongs in members.items()}
        found.append(Lengths(len(actions), context, streams=counts, fused=int(kept.sum())))
    return found


def _stack(
    model: RetrieverConfig,
    layers: int,
    attention: AttentionConfig,
    truncation: TruncationConfig | None,
    lengths: Lengths,
    newest_only: bool,
) -> Flops:
    """Return the operations of a stack of one stage, or of two."""
    c, h, t = lengths.context, lengths.history, lengths.targets
    if truncation is None:
        return _layers(model, layers, attention.mask(), (c, h, t), newest_only)
    long = (c, h, t if truncation.targets == "both" else 0)
    short = (c, min(h, truncation.length), t)
    first = _layers(model, layers, attention.mask(), long, False)
    return first + _layers(model, truncation.layers, truncation.attention.mask(), short, newest_only)


def _layers(model: RetrieverConfig, layers: int, mask: MaskSpec, sizes: tuple[int, int, int], last_row: bool) -> Flops:
    """Return the operations of `layers` HSTU layers; with `last_row` the last gives the newest event alone."""
    width, heads, layer = model.width, model.heads, model.layer
    d_qk, d_v = layer.qk_dim or width // heads, layer.v_dim or width // heads
    tokens, pair = sum(sizes), 2 * heads * (d_qk + d_v)
    half = 2 * width * heads * (d_qk + d_v)  # U and Q, and as much again V and K
    out = 2 * heads * d_v * (3 if layer.output == "concat" else 1) * width
    whole = Flops(tokens * (2 * half + out), mask.pairs(*sizes) * pair)
    if not last_row:
        return whole.times(layers)
    if not sizes[1]:
        return whole.times(layers - 1)
    last = Flops(tokens * half + half + out, newest_row_pairs(mask, *sizes[:2]) * pair)
    return whole.times(layers - 1) + last


@lru_cache(maxsize=1 << 16)
def newest_row_pairs(mask: MaskSpec, context: int, history: int) -> int:
    """Return how many keys the newest of `history` events sees."""
    row, columns = torch.tensor(context + history - 1), torch.arange(context + history)
    return int(mask.visible(row, columns, context, history, 0).sum())


def _sasrec(model: RetrieverConfig, history: int) -> Flops:
    """Return the operations of SASRec's layers: three projections and an output, then two products of feeding."""
    width, pairs = model.width, history * (history + 1) // 2
    return Flops(history * 12 * width * width, pairs * 4 * width).times(model.layers)


def _fusion(model: RetrieverConfig, lengths: Lengths, newest_only: bool) -> int:
    if model.fusion != "concat" or len(model.streams) < 2:
        return 0
    history = lengths.history if lengths.fused is None else lengths.fused
    tokens = 1 if newest_only else lengths.context + history + lengths.targets
    return tokens * 2 * (len(model.streams) + 1) * model.width**2


def _merging_of_event(model: RetrieverConfig, schema: Schema | None) -> int:
    """Return the operations that make one event's vector of actions; sums of embeddings are none."""
    if schema is None or model.embedding.actions != "mlp":
        return 0
    parts = len(schema.actions) + len(schema.strengths)
    return 2 * _chain([parts * SIDE_WIDTH, model.width, model.width])


def _trained_rows(model: RetrieverConfig, lengths: Lengths) -> int:
    """Return the positions that have a query: after a truncation, those near the newest alone."""
    if model.streams:
        return lengths.history if lengths.fused is None else lengths.fused
    return lengths.history if model.truncation is None else min(lengths.history, model.truncation.length)


def _events(lengths: Lengths, name: str, model: RetrieverConfig) -> int:
    if name not in lengths.streams:
        raise InputError(
            f"counting operations: the model has streams {', '.join(model.streams)}, and the lengths say nothing of "
            f"{name!r}: give Lengths(streams=...), as lengths_of() does"
        )
    return lengths.streams[name]


def _chain(widths: Sequence[int]) -> int:
    """Return the multiply-adds of linear layers of these widths on one row."""
    return sum(a * b for a, b in pairwise(widths))
