"""Training steps as CUDA graphs: captured once for each shape of a padded batch, then replayed with one launch.

A step of a small model is hundreds of kernels of a few microseconds, fewer than a host can launch in that time. The
first steps of a shape run launch by launch, so that kernels are compiled and optimiser state exists; they train like
any other. Random numbers of a replay are those the same step would draw launch by launch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.padding import capacity_for, padded
from longview.models.retriever import RetrieverConfig, stages
from longview.ops.attention import FURTHEST, WIDEST, why_off
from longview.ops.collectives import ranks
from longview.ops.graphs import CaptureAbandonedError, launched, recorded
from longview.training.config import RunConfig

WARM_UP = 3  # steps of a shape before it is captured
MOST = 32  # graphs kept; the shapes of a data set's batches are fewer, unless their sizes differ wildly
WORDS = torch.int64  # what the buffer of a step's input holds; columns of any dtype are laid into it byte for byte

Result = TypeVar("Result")
Body = Callable[[JaggedBatch, Tensor, Tensor], tuple[Tensor, Tensor]]


def choose_graphs(config: RunConfig, device: torch.device) -> tuple[bool, str | None]:
    """Return `graphs_wanted` for a run on a log."""
    return graphs_wanted(config.loop.graphs, device, lambda: why_no_graphs(config, device))


def graphs_wanted(setting: str, device: torch.device, why_not: Callable[[], str | None]) -> tuple[bool, str | None]:
    """Return whether steps run as graphs and, where they do not but could be expected to, a sentence saying why.

    `setting` is `loop.graphs`: `auto` expects them on a GPU, `on` everywhere. `why_not` is asked on a GPU alone.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False, None
    world, _ = ranks()
    several = f"gradients are summed over {world} processes in the middle of a step" if world > 1 else None
    refusal = (several or why_not()) if device.type == "cuda" else f"they need a GPU, and the run is on {device.type}"
    return refusal is None, None if refusal is None else f"CUDA graphs are off, launching step by step: {refusal}"


def why_no_graphs(config: RunConfig, device: torch.device) -> str | None:
    """Return why steps of `config` cannot be captured on `device`, a GPU, or None where they can."""
    if config.task == "both":
        return "task both picks the events whose next item it trains, so shapes depend on what is in a batch"
    return _why_no_kernel(config.model, device) if config.model.kind == "hstu" else None


def _why_no_kernel(model: RetrieverConfig, device: torch.device) -> str | None:
    """Return why attention would take the dense path, which looks at lengths on the host."""
    reason = why_off("triton", device)
    if reason is not None:
        return f"attention has no kernel here: {reason}"
    widest = max(model.layer.qk_dim or 0, model.layer.v_dim or 0, model.width // model.heads)
    if widest > WIDEST:
        return f"the attention kernels take heads of up to {WIDEST}, and these have {widest}"
    furthest = max((length for attention, length in stages(model) if attention.position_bias), default=0)
    if furthest > FURTHEST:
        return f"the attention kernels take a position bias of up to {FURTHEST} distances, not {furthest}"
    return None


def recorded_step(
    body: Callable[[], Result], stream: torch.cuda.Stream, shape: str, **options: Any
) -> tuple[torch.cuda.CUDAGraph, Result] | None:
    """Return a step of `shape`, in words, as a graph and what it returns, as `recorded` with its `options` does.

    None, with a warning, where the capture stopped halfway and steps can be launched instead.

    Raises:
        LongviewError: the device cannot go on from here; the message says how the run can.
    """
    refusal = (
        f"a training step of {shape} cannot be captured as a CUDA graph ({{reason}}); train with "
        "--set loop.graphs=off, or go on with --resume --set loop.graphs=off"
    )
    try:
        return recorded(body, stream, refusal=refusal, **options)
    except CaptureAbandonedError as error:
        warnings.warn(
            f"a training step of {shape} could not be captured as a CUDA graph ({error.reason}); the run goes on and "
            "launches such steps kernel by kernel, which is slower and trains the same. loop.graphs=off does not try",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


class CapturedSteps:
    """Runs `body` on padded batches, as a graph where a shape has come often enough.

    Args:
        body: `(batch, rate, share) → (loss, norm)`: a whole step on tensors of `device`, the learning rate and the
            share of the weight average scalars among them. It may not wait for the device, and whatever it changes it
            changes in place.
        device: a GPU.
        max_length: of a history.
        candidates: the most of them behind a history.
        sizes: of a padded batch on the CPU, how many rows each selection of the model is to keep.
        generators: random generators that `body` uses besides the device's own.
        undo: drops what `body` leaves on the host when it stops halfway, such as gradients.

    A capture that stops halfway is warned of, once: then there are no further ones, and steps without a graph are
    launched.

    Tensors that `body` reads and somebody else replaces, such as loaded optimiser state, need a new instance.
    """

    def __init__(
        self,
        body: Body,
        *,
        device: torch.device,
        max_length: int,
        candidates: int = 0,
        sizes: Callable[[JaggedBatch], dict[str, int]] = lambda batch: {},
        generators: Sequence[torch.Generator] = (),
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        self.undo, self.abandoned = undo, False
        self.body, self.device, self.sizes, self.generators = body, device, sizes, generators
        self.max_length, self.candidates = max_length, candidates
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.shapes: dict[tuple[object, ...], _Shape] = {}

    def step(self, batch: JaggedBatch, rate: float, share: float) -> tuple[Tensor, Tensor]:
        """Do the step of `batch`, on the CPU; return loss and norm, scalars that nothing overwrites."""
        capacity = capacity_for(batch, self.max_length)
        filled = padded(batch, capacity, self.max_length, self.candidates)
        sizes = self.sizes(filled)
        key = (capacity, *sizes.values())
        with torch.cuda.device(self.device):
            shape = self.shapes.get(key)
            if shape is None:
                shape = self.shapes[key] = _Shape(filled, sizes, self.device)
            shape.write(filled, rate, share)
            shape.steps += 1
            if shape.graph is None and shape.steps > WARM_UP and self.captured < MOST and not self.abandoned:
                self._capture(shape)
            if shape.graph is None:
                return self._launched(shape)
            assert shape.results is not None
            shape.graph.replay()
            loss, norm = shape.results
            return loss.clone(), norm.clone()

    @property
    def captured(self) -> int:
        """How many graphs there are."""
        return sum(shape.graph is not None for shape in self.shapes.values())

    def _launched(self, shape: _Shape) -> tuple[Tensor, Tensor]:
        loss, norm = launched(lambda: self.body(*shape.read()), self.stream)
        return loss.clone(), norm.clone()

    def _capture(self, shape: _Shape) -> None:
        # One pool for all: they run one after another, and nothing in it is read after the next one begins.
        pool = next((other.graph.pool() for other in self.shapes.values() if other.graph is not None), None)
        found = recorded_step(
            lambda: self.body(*shape.read()), self.stream, shape.words, pool=pool, generators=self.generators
        )
        if found is None:
            self.undo()
            self.abandoned = True
        else:
            shape.graph, shape.results = found


class _Shape:
    """One shape: its input on the device, in one buffer that each step is written to, and its graph."""

    def __init__(self, like: JaggedBatch, sizes: dict[str, int], device: torch.device) -> None:
        self.steps, self.selected = 0, sizes
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: tuple[Tensor, Tensor] | None = None
        self.max_length = like.max_length
        self.words = f"{like.num_sequences} sequences and {like.num_tokens} events"
        given = {field.name: getattr(like, field.name) for field in fields(like)}
        columns = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        # Capacities are multiples of 16, so that all columns before the offsets begin at multiples of 16 bytes.
        names = sorted(columns, key=lambda name: name == "offsets")
        self.columns = {name: (columns[name].dtype, columns[name].shape) for name in names}
        self.sizes = [_words(columns[name]).numel() for name in names] + [2]
        self.buffer = torch.empty(sum(self.sizes), dtype=WORDS, device=device)

    def write(self, batch: JaggedBatch, rate: float, share: float) -> None:
        """Copy a step's input to the device, without waiting for it."""
        scalars = torch.tensor([rate, share], dtype=torch.float64)
        parts = [_words(part) for part in (*(getattr(batch, name) for name in self.columns), scalars)]
        # Torch keeps the pinned memory from being used again before the copy is done.
        pinned = torch.empty(len(self.buffer), dtype=WORDS, pin_memory=self.buffer.is_cuda)
        self.buffer.copy_(torch.cat(parts, out=pinned), non_blocking=True)

    def read(self) -> tuple[JaggedBatch, Tensor, Tensor]:
        """Return batch, rate and share as tensors of their own, made anew by every step and replay.

        What is kept by tensor, such as the work lists of attention, is therefore made anew as well.
        """
        *parts, scalars = torch.split(self.buffer.clone(), self.sizes)
        shapes = self.columns.items()
        columns = {n: part.view(dtype).view(shape) for (n, (dtype, shape)), part in zip(shapes, parts, strict=True)}
        batch = JaggedBatch(**columns, sizes=self.selected)
        vars(batch)["max_length"] = self.max_length
        rate, share = scalars.view(torch.float64).float().unbind()
        return batch, rate, share


def _words(column: Tensor) -> Tensor:
    return column.contiguous().flatten().view(WORDS)
