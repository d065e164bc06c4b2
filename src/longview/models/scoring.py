"""Candidates scored against cached states over and over: the whole call as a CUDA graph, launched at once.

    scorer = CandidateScorer(Incremental(model))
    scorer.predict(state, candidates)             # = Incremental.predict, for a few shapes captured and repeated

Captured is all from the candidates' ids to their vectors (and, of a `Ranker`, predictions), over copies of inputs and
caches in fixed memory. Numbers of users, candidates and cached tokens are filled up to few sizes: candidates of padding
belong to a user of their own, who has no history, and nobody else's result has other bits for them.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.padding import fixed_size
from longview.models import cached_stack
from longview.models.hstu import HSTUStack, product_dtype
from longview.models.in_place import InPlaceStack, read_in_place, why_not_in_place
from longview.models.incremental import Incremental
from longview.models.ranker import Ranker
from longview.models.state import Cache, UserState
from longview.models.topology import TruncatedStack
from longview.ops.graphs import launched, recorded
from longview.ops.kernels import on_device_of

WARM_UP = 1  # calls of a shape before it is captured: kernels are compiled, libraries prepare themselves
MOST = 16  # shapes kept; each holds a copy of the caches it reads
NOT_CAPTURED = (
    "scoring with this model cannot be captured as a CUDA graph ({reason}); use candidates and predict of Incremental, "
    "which launch kernel by kernel"
)
LARGEST = 1 << 15  # candidates of a captured call; more go in micro-batches


class CandidateScorer:
    """`Incremental.candidates` and `predict` for a service: the same results, on a GPU from a captured graph.

    It belongs to the weights at its first call: make a new one when they change. States and candidates may change from
    call to call; the one state of the last call is not read again if it comes again. Not for several threads at a time.

    Args:
        incremental: of a model in evaluation mode.

    Example:
        >>> from longview.models.retriever import RetrieverConfig
        >>> config = RetrieverConfig(width=8, heads=1, embedding={"positions": False})
        >>> incremental = Incremental(config.build(num_items=5).eval())
        >>> state = incremental.prefill(JaggedBatch(torch.tensor([0, 3, 1]), torch.tensor([0, 3])))
        >>> scorer = CandidateScorer(incremental)
        >>> scorer.candidates(state, JaggedBatch(torch.tensor([2, 4]), torch.tensor([0, 2]))).shape
        torch.Size([2, 8])
        >>> scorer.why_not_captured(state)
        'CUDA graphs need a GPU, and the state is on cpu'
    """

    def __init__(self, incremental: Incremental) -> None:
        self.incremental = incremental
        self._ready: dict[torch.dtype, dict[str, list[InPlaceStack]]] = {}
        self._shapes: OrderedDict[_Key, _Shape] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None

    def candidates(self, state: UserState, batch: JaggedBatch) -> Tensor:
        """Return what `Incremental.candidates` does; the batch may be on the CPU.

        Raises:
            InputError: as there.
            LongviewError: the GPU refuses the capture.
        """
        if self.why_not_captured(state) is not None or not 0 < batch.num_tokens <= LARGEST:
            return self.incremental.candidates(state, batch.to(state.lengths.device))
        return self._run(state, batch).vectors[: batch.num_tokens].clone()

    def predict(self, state: UserState, batch: JaggedBatch) -> Tensor:
        """Return what `Incremental.predict` does; the batch may be on the CPU.

        Raises:
            InputError, LongviewError: as `candidates`.
        """
        if self.why_not_captured(state) is not None or not 0 < batch.num_tokens <= LARGEST:
            return self.incremental.predict(state, batch.to(state.lengths.device))
        self.incremental.head()
        found = self._run(state, batch).predictions
        assert found is not None, "checked"
        return found[: batch.num_tokens].clone()

    def why_not_captured(self, state: UserState) -> str | None:
        """Return why calls with such a state run launch by launch, in a sentence, or None where they are captured."""
        reason = why_no_graphs(state.lengths.device)
        if reason is not None:
            return reason
        like = self._like()
        for name, stack in self.incremental.stacks.items():
            for stage in cached_stack.stages(stack):
                reason = why_not_in_place(stage, state.streams[name].cache.keys.dtype, like)
                if reason is not None:
                    return f"candidates cannot be read against the caches in place: {reason}"
        return None

    @property
    def captured(self) -> int:
        """How many graphs there are."""
        return sum(shape.graph is not None for shape in self._shapes.values())

    @torch.no_grad()
    def _run(self, state: UserState, batch: JaggedBatch) -> _Results:
        self.incremental.check_candidates(state, batch)
        with on_device_of(state.lengths):
            key = _Key.of(self.incremental, state, batch, product_dtype(self._like()))
            shape = self._shapes.get(key)
            if shape is None:
                shape = self._shapes[key] = _Shape(self.incremental, key, self._prepared(key.product), state)
                while len(self._shapes) > MOST:
                    self._shapes.popitem(last=False)
            self._shapes.move_to_end(key)
            shape.write(state, batch)
            shape.calls += 1
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if shape.graph is None and shape.calls <= WARM_UP:
                return shape.launch(self._stream)
            return shape.replay(self._stream)

    def _prepared(self, product: torch.dtype) -> dict[str, list[InPlaceStack]]:
        if product not in self._ready:
            self._ready[product] = {
                name: [InPlaceStack.of(stage, product) for stage in cached_stack.stages(stack)]
                for name, stack in self.incremental.stacks.items()
            }
        return self._ready[product]

    def _like(self) -> Tensor:
        """Return rows of the device and, but for autocast, of the dtype that candidates have."""
        return self.incremental.model.embedding.items.weight[:0]


def why_no_graphs(device: torch.device) -> str | None:
    """Return why nothing is captured on `device`, or None where it can be."""
    return None if device.type == "cuda" else f"CUDA graphs need a GPU, and the state is on {device.type}"


@dataclass(frozen=True)
class _Results:
    vectors: Tensor  # (candidates, width)
    predictions: Tensor | None  # (candidates, tasks), of a Ranker


@dataclass(frozen=True)
class _Key:
    """What a graph was captured for: sizes, all of them filled up, and the dtype of products."""

    device: torch.device
    product: torch.dtype
    autocast: bool
    users: int
    candidates: int
    timed: bool
    tokens: tuple[tuple[str, tuple[int, ...]], ...]  # cached ones, of each stage of each stream

    @classmethod
    def of(cls, incremental: Incremental, state: UserState, batch: JaggedBatch, product: torch.dtype) -> _Key:
        users = 1 << (state.num_users - 1).bit_length()
        tokens = tuple(
            (name, tuple(_most_cached(incremental, stage, number, users, len(state.streams[name].cache.keys))
                         for number, stage in _numbered(stack)))
            for name, stack in incremental.stacks.items()
        )  # fmt: skip
        autocast = torch.is_autocast_enabled(state.lengths.device.type)
        candidates = fixed_size(batch.num_tokens)
        return cls(state.lengths.device, product, autocast, users, candidates, state.timestamps is not None, tokens)


def _numbered(stack: HSTUStack | TruncatedStack) -> list[tuple[int, HSTUStack]]:
    """Return the stages that read candidates, each with the length of what it keeps (0: as its mask says)."""
    if isinstance(stack, TruncatedStack):
        return [(0 if stage is stack.first else stack.length, stage) for stage in cached_stack.stages(stack)]
    return [(0, stack)]


def _most_cached(incremental: Incremental, stage: HSTUStack, length: int, users: int, total: int) -> int:
    """Return room for the cached tokens of so many users: the most there can be, if the state has one size."""
    context = incremental.model.embedding.context
    mask = stage.hstu_layers()[0].mask
    most = length or (mask.local_window and mask.local_window + mask.global_size)
    return users * (most + (0 if context is None else context.num_features)) if most else fixed_size(total)


class _Shape:
    """One shape: copies of inputs and caches on the device, and the graph that reads them.

    There is one user more than `key.users`: padding's.
    """

    def __init__(
        self, incremental: Incremental, key: _Key, ready: Mapping[str, Sequence[InPlaceStack]], state: UserState
    ) -> None:
        self.incremental, self.key, self.ready = incremental, key, ready
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: _Results | None = None
        self._loaded: weakref.ref[UserState] | None = None
        users = key.users + 1

        def zeros(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int64, device=key.device)

        self.items, self.offsets, self.lengths = zeros(key.candidates), zeros(users + 1), zeros(users)
        self.times, self.last = (zeros(n) if key.timed else None for n in (key.candidates, users))
        self.offsets[-1] = key.candidates

        def cache(like: Cache, tokens: int, layers: int) -> Cache:
            keys, values = (x.new_empty(tokens, layers, *x.shape[2:]) for x in (like.keys, like.values))
            context = None if like.context_lengths is None else zeros(users)
            return Cache(zeros(users + 1), keys, values, zeros(0), context_lengths=context)

        self.caches = {
            name: [
                cache(state.streams[name].cache, count, len(stack.layers))
                for count, stack in zip(tokens, ready[name], strict=True)
            ]
            for name, tokens in key.tokens
        }

    def write(self, state: UserState, batch: JaggedBatch) -> None:
        """Copy a call's input to the device; the caches only if they are not those of the last call."""
        count, users = batch.num_tokens, state.num_users
        self.items[:count].copy_(batch.items, non_blocking=True)
        self.offsets[: users + 1].copy_(batch.offsets, non_blocking=True)
        self.offsets[users + 1 : -1].fill_(count)
        if self.times is not None and batch.timestamps is not None:
            self.times[:count].copy_(batch.timestamps, non_blocking=True)
        if self._loaded is not None and self._loaded() is state:
            return
        _fill(self.lengths, state.lengths, 0)
        if self.last is not None and state.timestamps is not None:
            _fill(self.last, state.timestamps, 0)
        for name, stack in self.incremental.stacks.items():
            given = cached_stack.caches(stack, state.streams[name])
            for mine, cache in zip(self.caches[name], given, strict=True):
                tokens = len(cache.keys)
                _fill(mine.offsets, cache.offsets, tokens)
                mine.keys[:tokens].copy_(cache.keys)
                mine.values[:tokens].copy_(cache.values)
                if mine.context_lengths is not None and cache.context_lengths is not None:
                    _fill(mine.context_lengths, cache.context_lengths, 0)
        self._loaded = weakref.ref(state)

    def launch(self, stream: torch.cuda.Stream) -> _Results:
        """Run kernel by kernel, on the stream of a later capture."""
        found, current = launched(self._body, stream), torch.cuda.current_stream()
        for x in (found.vectors, found.predictions):
            if x is not None:
                x.record_stream(current)
        return found

    def replay(self, stream: torch.cuda.Stream) -> _Results:
        """Run the graph, captured now if it was not before."""
        if self.graph is None:
            self.graph, self.results = recorded(self._body, stream, refusal=NOT_CAPTURED)
        self.graph.replay()
        assert self.results is not None
        return self.results

    def _body(self) -> _Results:
        """Return the results; whatever depends on the call is made anew from the fixed memory."""
        # A cast that autocast kept from outside the graph would be gone when it is replayed.
        kind = self.key.device.type
        context = torch.autocast(kind, self.key.product, enabled=self.key.autocast, cache_enabled=False)
        with torch.no_grad(), context:
            batch = JaggedBatch(self.items, self.offsets, self.times, target_lengths=self.offsets.diff())
            tokens = self.incremental.embedded(batch, self.lengths, self.last)
            found = [
                read_in_place(list(zip(stacks, self.caches[name], strict=True)), tokens.x, tokens.offsets)
                for name, stacks in self.ready.items()
            ]
            vectors = self.incremental.fused(found)
            ranks = isinstance(self.incremental.model, Ranker)
            return _Results(vectors, self.incremental.predictions(vectors, self.items) if ranks else None)


def _fill(into: Tensor, values: Tensor, rest: Any) -> None:
    """Copy `values` (n,) to the front of `into` and put `rest` behind them."""
    into[: len(values)].copy_(values)
    into[len(values) :].fill_(rest)
