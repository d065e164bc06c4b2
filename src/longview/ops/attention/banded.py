"""Semi-local attention on the CPU: O(L (K1 + K2)) time, O(L) memory, forward and backward.

Scores exist only for one tile at a time (a block of rows against the columns it sees, some heads or sequences at
once), small enough to stay in cache, and are computed again in the backward pass: saved are q, k and v alone.
Everything is a matrix product or an in-place pass over a tile; nothing needs a compiler.

The bits of a sequence's result do not depend on the other sequences of the batch: the shape of every product it
takes part in follows from its own lengths (`packing.py`), and products of a batch are independent of each other.
Shape suffixes: T tokens of the batch, N sequences x heads, R rows of a block, C columns of a tile, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.lanes import Scratch
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.packing import Chunk, Long, Packing, Rows, packing_of
from longview.ops.attention.passes import Part, Scale, backward_part, forward_part
from longview.ops.attention.tile_bias import TileBias
from longview.ops.attention.workers import Piece, share

WORTHWHILE = 1 << 19  # scores; about a millisecond of work, several times the start of a thread


def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    bias: RelativeBias | None = None,
) -> Tensor:
    """Return attention (T, heads, D_v) as `semi_local_attention` defines it, for tensors on the CPU.

    float64 is computed in float64, everything else in float32. Differentiable once, in q, k, v and the bias.
    """
    lengths = offsets.diff()
    context = torch.zeros_like(lengths) if context_lengths is None else context_lengths
    targets = torch.zeros_like(lengths) if target_lengths is None else target_lengths
    history = lengths - context - targets
    sequences = tuple(zip(context.tolist(), history.tolist(), targets.tolist(), strict=True))
    bias = bias or RelativeBias()
    biased = bias.position is not None or bias.time is not None
    packing = packing_of(mask, sequences, q.shape[1], biased)
    stamps = None if bias.time is None else bias.timestamps
    settings = _Settings(packing, Scale(alpha, 1 / scale_length), stamps)
    out: Tensor = _Banded.apply(q, k, v, bias.position, bias.time, settings)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class _Settings:
    packing: Packing
    scale: Scale
    stamps: Tensor | None


class _Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, position: Tensor | None, time: Tensor | None, settings: _Settings
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, position, time)
        ctx.settings = settings
        with torch.autocast("cpu", enabled=False):
            return _forward(q, k, v, position, time, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            gradients = _backward(ctx.saved_tensors, d_out, ctx.settings)
        return (*gradients, None)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor | None, time: Tensor | None, settings: _Settings
) -> Tensor:
    work = _computed(q, k, v)
    out = work[2].new_empty(v.shape)
    _run(forward_part, work, (out,), _tile_bias(position, time, settings.packing, out.dtype), settings)
    return out.to(v.dtype)


def _backward(saved: tuple[Tensor | None, ...], d_out: Tensor, settings: _Settings) -> tuple[Tensor | None, ...]:
    q, k, v, position, time = saved
    assert q is not None
    assert k is not None
    assert v is not None
    work = _computed(q, k, v, d_out)
    gradients = tuple(x.new_empty(x.shape) for x in work[:3])
    bias = _tile_bias(position, time, settings.packing, work[0].dtype)
    _run(backward_part, work, gradients, bias, settings)
    found = (*gradients, *((None, None) if bias is None else bias.gradients()))
    return tuple(g if g is None or x is None else g.to(x.dtype) for g, x in zip(found, saved, strict=True))


def _run(
    compute: Callable[[Part, Scale, TileBias | None, Scratch], None],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    bias: TileBias | None,
    settings: _Settings,
) -> None:
    """Compute every part of the batch; what is added to the parts' outputs (zero before) ends up in `outputs`."""
    packing, heads = settings.packing, inputs[0].shape[1]
    packed = [x.new_empty(packing.rows, x.shape[2]) for x in outputs]
    views = [Rows.of(x) for x in inputs]
    pieces: list[Piece] = []
    parts: list[tuple[TileBias, int, int]] = []

    def add(make: Callable[[Scratch], Part], first: int, stop: int) -> None:
        own = None if bias is None else bias.of_heads(first, stop)
        if own is not None:
            parts.append((own, first, stop))
        pieces.append(lambda scratch: compute(make(scratch), settings.scale, own, scratch))

    for long in packing.longs:
        for first, stop in _shares(heads, biased=bias is not None):
            add(partial(_long_part, long, (inputs, outputs), slice(first, stop), settings.stamps), first, stop)
    for chunk in packing.chunks:
        add(partial(_chunk_part, chunk, (views, packed), heads, settings.stamps), 0, heads)
    share(pieces, inputs[0].dtype, worthwhile=packing.scores >= WORTHWHILE)
    for own, first, stop in parts:
        bias.absorb(own, first, stop)  # type: ignore[union-attr]
    if packing.chunks:
        for x, out in zip(packed, outputs, strict=True):
            packing.unpack(x, out)


def _shares(heads: int, *, biased: bool) -> Iterator[tuple[int, int]]:
    """Cut the heads of a long sequence into pieces, of a size that no batch changes.

    One by one where blocks stand for several; else in twos (an odd one with the last two) for larger products.
    """
    size = 2 if biased else 1
    last = max(heads // size - 1, 0)
    return ((size * at, heads if at == last else size * (at + 1)) for at in range(last + 1))


def _long_part(
    long: Long,
    tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
    heads: slice,
    stamps: Tensor | None,
    scratch: Scratch,
) -> Part:
    given, made = ([x[long.start : long.stop, heads].transpose(0, 1) for x in group] for group in tensors)
    for x in made:
        x.zero_()
    own = None if stamps is None else stamps[None, long.start : long.stop]
    return Part(heads.stop - heads.start, long.blocks, (*given, *made), own)


def _chunk_part(
    chunk: Chunk, tensors: tuple[Sequence[Rows], Sequence[Tensor]], heads: int, stamps: Tensor | None, scratch: Scratch
) -> Part:
    rows, (inputs, outputs) = chunk.token.numel(), tensors
    copies = [scratch.take(f"in {i}", (rows, x.matrix.shape[1]))[0] for i, x in enumerate(inputs)]
    given = [chunk.gather(x, copy) for x, copy in zip(inputs, copies, strict=True)]
    made = [chunk.part(x).zero_() for x in outputs]
    return Part(heads, chunk.blocks, (*given, *made), None if stamps is None else stamps[chunk.tokens])


def _tile_bias(position: Tensor | None, time: Tensor | None, packing: Packing, dtype: torch.dtype) -> TileBias | None:
    if position is None and time is None:
        return None
    position, time = (x if x is None else x.to(dtype) for x in (position, time))
    return TileBias(position, time, packing.longest)


def _computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the dtype scores are computed in, rows of `d` elements contiguous."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(x.to(dtype) if x.stride(2) == 1 else x.to(dtype).contiguous() for x in tensors)
