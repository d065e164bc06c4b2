"""A stack that goes on where it stopped: new events and candidates behind cached keys and values.

A history row never sees later events, so keys and values of earlier layers stay what they are, as long as the mask
lets them (`MaskSpec.append_exact`). With a window the cache holds the prefix and the window alone: K1 + K2 tokens a
layer, however long the history. The second stage of a truncated stack reads a window that moves with each event, so it
is computed anew from the kept outputs of the first. Candidates share a user's cache and are taken a few thousand at a
time (M-FALCON, HSTU, arXiv 2402.17152).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longview.models.hstu import HSTUStack, product_dtype
from longview.models.in_place import InPlaceStack, read_in_place, why_not_in_place
from longview.models.layout import Extension, Layout
from longview.models.state import Cache, StackState
from longview.models.topology import TruncatedStack
from longview.ops.jagged import (
    concat_rows,
    counts_within,
    history_ages,
    newest_members,
    offsets_from_lengths,
    positions,
    segment_ids,
)

Stack = HSTUStack | TruncatedStack


@dataclass(frozen=True)
class Tokens:
    """New tokens of some users: events, or candidates.

    Attributes:
        x: (tokens, width) their embeddings.
        offsets: (users + 1,) int64.
        timestamps: (tokens,) int64, or None.
    """

    x: Tensor
    offsets: Tensor
    timestamps: Tensor | None = None


def why_not_appended(stack: Stack) -> str | None:
    """Return why a state of `stack` cannot be kept, or None where appending equals reading all anew."""
    layer = _first(stack).hstu_layers()[0]
    if layer.mask.append_exact:
        return None
    return (
        "attention.global_mode recent gives the newest rows a view that they lose with the next event, so every event "
        "changes earlier rows: set global_mode prefix (recent may stay in a truncation's second stage, which is "
        "computed anew), or recompute whole histories with user_vectors"
    )


def why_no_candidates(stack: Stack) -> str | None:
    """Return why candidates cannot be scored against a state of `stack`, or None where they can."""
    reading, first = stages(stack), _first(stack)
    if reading[0] is first and _windowed(first) and first.hstu_layers()[0].mask.target_scope == "full":
        return (
            "its candidates see the whole history, and the state keeps the prefix and the window alone: set "
            "attention.target_scope semi_local, or read candidates in the second stage alone (truncation.targets)"
        )
    if any(stage.hstu_layers()[0].position_bias is not None for stage in reading):
        return "attention.position_bias counts the distance to each candidate: set it false"
    return None


def prefill(stack: Stack, x_TD: Tensor, layout: Layout) -> StackState:
    """Return the state of `stack` after the sequences `[context | history]` of `layout`."""
    first, total = _first(stack), len(x_TD)
    layout = replace(layout, target_lengths=None, timestamps=layout.timestamps if _timed(stack) else None)
    x_TD, cache = _read(first, x_TD, layout)
    members = _output_members(stack, layout.offsets, total, layout.context_lengths)
    return StackState(
        lengths=layout.history_lengths(),
        cache=cache,
        output_offsets=offsets_from_lengths(counts_within(members, layout.offsets)),
        outputs=x_TD[members],
        output_times=None if layout.timestamps is None else layout.timestamps[members],
    )


def append(stack: Stack, state: StackState, events: Tokens) -> StackState:
    """Return the state after `events` (none for some users, perhaps) at the end of the histories."""
    old, total = state.output_offsets, len(state.outputs)
    x_ND, cache = _extend(_first(stack), state.cache, events, state.lengths)
    order = concat_rows(old, events.offsets, total, len(x_ND))
    offsets = old + events.offsets
    contexts = state.cache.context_lengths if isinstance(stack, TruncatedStack) else None
    members = _output_members(stack, offsets, len(order), contexts)
    kept = order[members]
    times = None
    if state.output_times is not None and events.timestamps is not None:
        times = torch.cat([state.output_times, events.timestamps])[kept]
    return StackState(
        lengths=state.lengths + events.offsets.diff(),
        cache=cache,
        output_offsets=offsets_from_lengths(counts_within(members, offsets)),
        outputs=torch.cat([state.outputs, x_ND.to(state.outputs.dtype)])[kept],
        output_times=times,
    )


def newest(stack: Stack, state: StackState) -> Tensor:
    """Return (users, width), the vector of each user's newest event; of users without one, anything finite."""
    if len(state.outputs) == 0:
        return state.outputs.new_zeros(len(state.lengths), state.outputs.shape[1])
    if isinstance(stack, TruncatedStack):
        return stack.second.newest(*_second_input(stack, state))
    return state.outputs[(state.output_offsets[1:] - 1).clamp(min=0)]


def stages(stack: Stack) -> list[HSTUStack]:
    """Return the stages of `stack` that read candidates."""
    if isinstance(stack, HSTUStack):
        return [stack]
    return [stack.first, stack.second] if stack.targets == "both" else [stack.second]


def caches(stack: Stack, state: StackState) -> list[Cache]:
    """Return what candidates see in each of `stages`; a second one reads its part of the history for it."""
    if isinstance(stack, HSTUStack):
        return [state.cache]
    second = _read(stack.second, *_second_input(stack, state), whole=True)[1]
    return [state.cache, second] if stack.targets == "both" else [second]


def candidates(stack: Stack, state: StackState, given: Tokens, micro_batch: int) -> Tensor:
    """Return (candidates, width), the vectors of `given` behind each user's history, `micro_batch` at a time."""
    found, known = stages(stack), caches(stack, state)
    pairs = list(zip(found, known, strict=True))
    if all(why_not_in_place(stage, cache.keys.dtype, given.x) is None for stage, cache in pairs):
        ready = [(InPlaceStack.of(stage, product_dtype(given.x)), cache) for stage, cache in pairs]
        return read_in_place(ready, given.x, given.offsets, micro_batch)
    bounds = [cache.offsets.tolist() for cache in known]
    out = []
    for first, stop, part in _micro_batches(given, micro_batch):
        x_CD, lengths = part.x, state.lengths[first:stop]
        for (stage, cache), ends in zip(pairs, bounds, strict=True):
            own = cache.users(first, stop, ends)
            x_CD, _ = _extend(stage, own, replace(part, x=x_CD), lengths, targets=True)
        out.append(x_CD)
    return torch.cat(out) if out else given.x


def _micro_batches(given: Tokens, size: int) -> Iterator[tuple[int, int, Tokens]]:
    """Yield first and last (excluded) user and the candidates of each run of at most `size`."""
    bounds: Sequence[int] = given.offsets.tolist()
    for start in range(0, bounds[-1], size):
        end = min(start + size, bounds[-1])
        first, stop = bisect_right(bounds, start) - 1, bisect_left(bounds, end)
        offsets = given.offsets[first : stop + 1].clamp(start, end) - start
        stamps = None if given.timestamps is None else given.timestamps[start:end]
        yield first, stop, Tokens(given.x[start:end], offsets, stamps)


def _read(stack: HSTUStack, x_TD: Tensor, layout: Layout, *, whole: bool = False) -> tuple[Tensor, Cache]:
    """Return the output of every token, and the cache of what later tokens see (of the `whole` history)."""
    total, context = len(x_TD), layout.context_lengths
    members = None if whole else _cache_members(stack, layout.offsets, total, context)
    kept = torch.arange(total, device=x_TD.device) if members is None else members.nonzero()[:, 0]
    places = positions(layout.offsets, total)
    if context is not None:
        places = places - context[segment_ids(layout.offsets, total)]
    keys, values = [], []
    for layer in stack.hstu_layers():
        x_TD, k_THD, v_THD = layer.forward_keeping(x_TD, layout)
        keys.append(k_THD[kept])
        values.append(v_THD[kept])
    offsets = layout.offsets
    return x_TD, Cache(
        offsets=offsets if members is None else offsets_from_lengths(counts_within(members, offsets)),
        keys=torch.stack(keys, 1),
        values=torch.stack(values, 1),
        places=places[kept],
        times=None if layout.timestamps is None else layout.timestamps[kept],
        context_lengths=context,
    )


def _extend(
    stack: HSTUStack, cache: Cache, new: Tokens, lengths: Tensor, *, targets: bool = False
) -> tuple[Tensor, Cache]:
    """Return the output of the new tokens, and the cache with them in it; candidates (`targets`) stay out of it.

    `lengths` (users,) are the events read before.
    """
    total, count = len(cache.places), len(new.x)
    offsets, context = cache.offsets + new.offsets, cache.context_lengths
    numbers = torch.arange(count, device=new.x.device)
    segments = segment_ids(new.offsets, count)
    new_rows = numbers + cache.offsets[segments + 1]
    old_rows = torch.arange(total, device=new.x.device) + new.offsets[segment_ids(cache.offsets, total)]

    def joined(cached: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the rows in the order of the joined sequences; those of new tokens are left open without `added`."""
        found = cached.new_empty(total + count, *cached.shape[1:]).index_copy_(0, old_rows, cached)
        return found if added is None else found.index_copy_(0, new_rows, added)

    places = joined(cache.places, numbers - new.offsets[segments] + lengths[segments])
    times = None
    if cache.times is not None and new.timestamps is not None:
        times = joined(cache.times, new.timestamps)
    extension = Extension(
        new_rows, new.offsets, offsets, context, new.offsets.diff() if targets else None, places, times
    )
    x_ND, keys, values = new.x, joined(cache.keys), joined(cache.values)
    for number, layer in enumerate(stack.hstu_layers()):
        x_ND = layer.extend(x_ND, keys[:, number], values[:, number], extension)
    if targets:
        return x_ND, cache
    members = _cache_members(stack, offsets, total + count, context)
    kept = slice(None) if members is None else members.nonzero()[:, 0]
    return x_ND, Cache(
        offsets=offsets if members is None else offsets_from_lengths(counts_within(members, offsets)),
        keys=keys[kept],
        values=values[kept],
        places=places[kept],
        times=None if times is None else times[kept],
        context_lengths=context,
    )


def _cache_members(stack: HSTUStack, offsets: Tensor, total: int, context: Tensor | None) -> Tensor | None:
    """Return which tokens later ones will see: context, prefix and window; None = all."""
    if not _windowed(stack):
        return None
    mask = stack.hstu_layers()[0].mask
    places = positions(offsets, total)
    if context is not None:
        places = places - context[segment_ids(offsets, total)]
    return (places < mask.global_size) | (history_ages(offsets, total) < mask.local_window)


def _output_members(stack: Stack, offsets: Tensor, total: int, context: Tensor | None) -> Tensor:
    """Return which outputs of the first stage will be asked for."""
    if isinstance(stack, TruncatedStack):
        return newest_members(offsets, total, stack.length, context)
    newest = history_ages(offsets, total) == 0
    if context is None:
        return newest
    return newest & (positions(offsets, total) >= context[segment_ids(offsets, total)])


def _second_input(stack: TruncatedStack, state: StackState) -> tuple[Tensor, Layout]:
    """Return the tokens that the second stage reads, and their layout."""
    offsets = state.output_offsets
    longest = int(offsets.diff().max()) if len(state.lengths) else 0
    layout = Layout(offsets, longest, state.output_times, context_lengths=state.cache.context_lengths)
    return stack.placed(state.outputs, layout), layout


def _windowed(stack: HSTUStack) -> bool:
    return stack.hstu_layers()[0].mask.local_window > 0


def _timed(stack: Stack) -> bool:
    stages = [stack] if isinstance(stack, HSTUStack) else [stack.first, stack.second]
    return any(stage.hstu_layers()[0].time_bias is not None for stage in stages)


def _first(stack: Stack) -> HSTUStack:
    return stack.first if isinstance(stack, TruncatedStack) else stack
