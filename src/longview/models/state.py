"""What is kept of users between requests, so that new events and candidates need no second look at their history.

Plain tensors of several users end to end: a service may hold one for each user (`take`) and put them together for a
batch (`join`), move them to a device, or store their bytes. Shape suffixes of tensors are in words: users, tokens
(cached, of all users), layers, heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from longview.errors import InputError
from longview.ops.jagged import offsets_from_lengths, rows_of


@dataclass(frozen=True)
class Cache:
    """Keys and values of the layers of one stack.

    Attributes:
        offsets: (users + 1,) int64.
        keys, values: (tokens, layers, heads, d): context, then of each history all, or the oldest and the newest
            events that later ones will see.
        places: (tokens,) int64 index of each in its history; context lies before 0.
        times: (tokens,) int64, or None where no bias asks.
        context_lengths: (users,) int64, or None.
    """

    offsets: Tensor
    keys: Tensor
    values: Tensor
    places: Tensor
    times: Tensor | None = None
    context_lengths: Tensor | None = None

    def users(self, first: int, stop: int, bounds: Sequence[int]) -> Cache:
        """Return the cache of users `first:stop`, a view; `bounds` are the offsets on the host."""
        tokens = slice(bounds[first], bounds[stop])
        return Cache(
            self.offsets[first : stop + 1] - bounds[first],
            self.keys[tokens],
            self.values[tokens],
            self.places[tokens],
            None if self.times is None else self.times[tokens],
            None if self.context_lengths is None else self.context_lengths[first:stop],
        )


@dataclass(frozen=True)
class StackState:
    """Where a stack stands in the histories of some users.

    Attributes:
        lengths: (users,) int64 events it has read.
        cache: keys and values of its (first-stage) layers.
        output_offsets: (users + 1,) int64 of `outputs`.
        outputs: (rows, width) last outputs of these layers: the newest event's, or for a truncated stack those of all
            context and of the newest events that its second stage reads.
        output_times: (rows,) int64, or None where no bias asks.
    """

    lengths: Tensor
    cache: Cache
    output_offsets: Tensor
    outputs: Tensor
    output_times: Tensor | None = None


@dataclass(frozen=True)
class UserState:
    """Where a model stands in the histories of some users.

    Attributes:
        lengths: (users,) int64 events read.
        timestamps: (users,) int64, time of the newest event (anything where there is none), or None.
        streams: state of each stack by the name of its stream; one named "history" in a model without streams.
    """

    lengths: Tensor
    timestamps: Tensor | None
    streams: Mapping[str, StackState]

    @property
    def num_users(self) -> int:
        return self.lengths.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.nbytes for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name; `from_tensors` undoes it."""
        found: dict[str, Tensor | None] = {"lengths": self.lengths, "timestamps": self.timestamps}
        for name, state in self.streams.items():
            flat = {**vars(state), **{f"cache.{key}": value for key, value in vars(state.cache).items()}}
            del flat["cache"]
            found |= {f"streams.{name}.{key}": value for key, value in flat.items()}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> UserState:
        """Return the state whose `tensors()` these are.

        Raises:
            InputError: a tensor is missing or unknown.
        """
        streams: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("streams."):
                _, name, rest = key.split(".", 2)
                streams.setdefault(name, {})[rest] = value
        try:
            made = {}
            for name, parts in streams.items():
                cache = {k.removeprefix("cache."): v for k, v in parts.items() if k.startswith("cache.")}
                own = {k: v for k, v in parts.items() if not k.startswith("cache.")}
                made[name] = StackState(cache=Cache(**cache), **own)
            return cls(tensors["lengths"], tensors.get("timestamps"), made)
        except (KeyError, TypeError) as error:
            raise InputError(f"these tensors are not the state of users: {error}; prefill again") from None

    def to(self, device: torch.device | str) -> UserState:
        """Return the state on `device`."""
        return self.from_tensors({name: value.to(device) for name, value in self.tensors().items()})

    def save(self) -> bytes:
        """Return the state as safetensors bytes, from whatever device."""
        return save({name: value.cpu().contiguous() for name, value in self.tensors().items()})

    @classmethod
    def load(cls, data: bytes) -> UserState:
        """Undo `save`, on the CPU.

        Raises:
            InputError: damaged bytes, or of something else.
        """
        try:
            return cls.from_tensors(load(data))
        except SafetensorError as error:
            raise InputError(f"these bytes are not the state of users: {error}; prefill again") from None

    def take(self, users: Tensor) -> UserState:
        """Return the state of some users, (n,) int64 places among these, in that order."""

        def chosen(state: StackState) -> StackState:
            cached, offsets = rows_of(state.cache.offsets, users)
            rows, output_offsets = rows_of(state.output_offsets, users)
            cache = _map(state.cache, {"offsets": lambda _: offsets, "context_lengths": lambda x: x[users]}, cached)
            own = {"lengths": lambda x: x[users], "output_offsets": lambda _: output_offsets, "cache": lambda _: cache}
            return _map(state, own, rows)

        timestamps = None if self.timestamps is None else self.timestamps[users]
        return UserState(self.lengths[users], timestamps, {name: chosen(s) for name, s in self.streams.items()})

    @classmethod
    def join(cls, states: Sequence[UserState]) -> UserState:
        """Return the states of users of one model, one after another, as one.

        Raises:
            InputError: none, or of different models.
        """
        given = [state.tensors() for state in states]
        if not given or any(found.keys() != given[0].keys() for found in given):
            raise InputError("states of one model are expected, one or more, to put them together")
        joined = {}
        for name in given[0]:
            parts = [found[name] for found in given]
            try:
                joined[name] = (
                    offsets_from_lengths(torch.cat([part.diff() for part in parts]))
                    if name.endswith("offsets")
                    else torch.cat(parts)
                )
            except RuntimeError as error:
                raise InputError(f"states of different models cannot be put together: {name}: {error}") from None
        return cls.from_tensors(joined)


S = TypeVar("S", Cache, StackState)


def _map(state: S, own: Mapping[str, Callable[[Tensor], object]], rows: Tensor) -> S:
    """Return `state` with `own` applied to the fields it names and `rows` taken of all others."""
    given = {name: value for name, value in vars(state).items() if value is not None}
    found: dict[str, Any] = {name: own[name](x) if name in own else x[rows] for name, x in given.items()}
    return replace(state, **found)
