"""Launches of the attention kernels: the bare passes, for callers that hold their own buffers.

Inputs may be slices of one projection: any token and head stride, the last dimension contiguous.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_backward import attention_backward_rows
from longview.ops.attention.triton_backward_keys import attention_backward_keys, attention_backward_sum
from longview.ops.attention.triton_forward import attention_forward
from longview.ops.attention.triton_tuning import SHIPPED, Blocks, ChosenBlocks, Kernel, blocks_for
from longview.ops.attention.work import KeyItems, Shape, key_items, longest_of, row_items
from longview.ops.kernels import interpreted, on_device_of, padded_dim

SLICE = 2048  # rows of a slice of a block of keys that all rows see
SUM_ROWS = 16  # keys that one program adds up


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch and mask: its lengths, and the lists of work made from them, which all layers share."""

    shape: Shape
    mask: MaskSpec
    _rows: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _keys: dict[tuple[int, int], KeyItems] = field(default_factory=dict, init=False, repr=False)

    def rows(self, size: int) -> Tensor:
        """Return the work of blocks of `size` rows (`work.row_items`)."""
        if size not in self._rows:
            self._rows[size] = row_items(self.shape, self.mask, size)
        return self._rows[size]

    def keys(self, size: int, rows: int) -> KeyItems:
        """Return the work of blocks of `size` keys that walk over tiles of `rows` (`work.key_items`)."""
        if (size, rows) not in self._keys:
            self._keys[size, rows] = key_items(self.shape, self.mask, size, rows, SLICE)
        return self._keys[size, rows]


_recent: OrderedDict[tuple[Any, ...], tuple[Batch, tuple[Any, ...]]] = OrderedDict()


def batch_of(
    offsets: Tensor,
    total: int,
    mask: MaskSpec,
    context: Tensor | None,
    targets: Tensor | None,
    query_offsets: Tensor | None = None,
    total_queries: int = 0,
) -> Batch:
    """Return the work of a batch; the same one for the same (unchanged) tensors, so that layers make it once.

    Tensors made in inference mode get new work every time: `torch.no_grad` is faster. Work made while a CUDA graph is
    captured is made again in every replay, and is of no use outside it.
    """
    given = (offsets, context, targets, query_offsets)
    shape = (offsets, context, targets, total, query_offsets, total_queries)
    if any(x is not None and x.is_inference() for x in given):  # they count no changes, so none would be noticed
        return _made(mask, *shape)
    capturing = offsets.is_cuda and torch.cuda.is_current_stream_capturing()
    key = (capturing, total, total_queries, mask, *((None if x is None else (id(x), x._version)) for x in given))
    found = _recent.get(key)
    if found is not None and all(x is None or ref() is x for x, ref in zip(given, found[1], strict=True)):
        return found[0]
    batch = _made(mask, *shape)
    _recent[key] = batch, tuple(None if x is None else weakref.ref(x) for x in given)
    while len(_recent) > 16:
        _recent.popitem(last=False)
    return batch


def _made(
    mask: MaskSpec,
    offsets: Tensor,
    context: Tensor | None,
    targets: Tensor | None,
    total: int,
    query_offsets: Tensor | None,
    total_queries: int,
) -> Batch:
    longest = 0 if context is None else longest_of(context)
    shape = Shape(offsets, context, targets, total, longest, query_offsets, total_queries)
    shape.demand()
    return Batch(shape, mask)


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of a relative bias as the kernels read them: float32 (heads, size), and int32 times of the tokens."""

    position: Tensor | None = None
    time: Tensor | None = None
    stamps: Tensor | None = None

    @classmethod
    def of(cls, bias: RelativeBias | None) -> Tables:
        if bias is None:
            return cls()
        stamps = bias.timestamps if bias.time is not None else None
        if stamps is not None and stamps.numel():
            # Only differences count. 31 bits of seconds are 68 years.
            stamps = (stamps - stamps.min()).clamp(max=2**31 - 1).to(torch.int32)
        position, time = (None if x is None else x.detach().float().contiguous() for x in (bias.position, bias.time))
        return cls(position, time, stamps)

    @property
    def sizes(self) -> tuple[int, int]:
        """Distances and time buckets, 0 without."""
        distances, buckets = (0 if x is None else x.shape[1] for x in (self.position, self.time))
        return distances, buckets

    def pointers(self, unused: Tensor) -> list[Tensor]:
        return [unused if x is None else x for x in (self.position, self.time, self.stamps)]

    def constants(self) -> dict[str, int]:
        return dict(zip(("P", "B"), self.sizes, strict=True))


@dataclass(frozen=True, eq=False)
class Call:
    """What a pass has besides its inputs: the work, the factors of scores and sum, the bias, and chosen block sizes."""

    batch: Batch
    alpha: float
    scale_length: float
    tables: Tables = Tables()
    chosen: ChosenBlocks = SHIPPED

    @property
    def scalars(self) -> tuple[float, float]:
        return self.alpha / 2, 1 / self.scale_length


def attention_forward_into(out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call) -> None:
    """Write attention of `q, k` (T, H, D_qk) and `v` (T, H, D_v) to `out` (T, H, D_v)."""
    blocks = _blocks("forward", call, q, v)
    items = call.batch.rows(blocks.rows)
    if not items.shape[0]:
        return
    tensors = (q, k, v, out)
    with on_device_of(q):  # which may not be the current GPU
        attention_forward[(items.shape[0] * q.shape[1],)](
            *tensors, items, *call.tables.pointers(out), *_strides(tensors), *call.scalars,
            **_constants(call.batch, q, v, blocks), **call.tables.constants(), **_options(blocks),
        )  # fmt: skip


def attention_backward_into(
    grads: tuple[Tensor, Tensor, Tensor], d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call
) -> tuple[Tensor | None, Tensor | None]:
    """Write the gradients of `q`, `k` and `v` to `grads`; return those of the bias tables, float32, where there are."""
    d_q, d_k, d_v = grads
    with on_device_of(q):
        tables = backward_rows_into(d_q, d_out, q, k, v, call)
        backward_keys_into(d_k, d_v, d_out, q, k, v, call)
    return tables


def attention_backward_before_silu_into(
    grads: tuple[Tensor, Tensor, Tensor],
    before: tuple[Tensor, Tensor, Tensor],
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: Call,
) -> Tensor:
    """Write the gradients of what SiLU made q, k and v of; return partial sums of them over the tokens.

    `before` (q, k, v before SiLU) has the strides of `grads`. The sums, float32 (., H * (D_v + 2 D_qk)), are those of
    v, q and k, to be added over the rows. One pass over the gradients is saved, and they are rounded once, not twice.
    """
    d_q, d_k, d_v = grads
    if any(x.stride() != d.stride() for x, d in zip(before, grads, strict=True)):
        raise ValueError("attention: gradients and what they are of must be laid out alike")
    heads, wide, keys_blocks = q.shape[1], v.shape[1] * v.shape[2], _blocks("keys", call, q, v)
    work = call.batch.keys(keys_blocks.keys, keys_blocks.rows)
    rows = call.batch.rows(_blocks("rows", call, q, v).rows).shape[0]
    slots = max(rows, work.items.shape[0] + work.sums.shape[0] * (keys_blocks.keys // SUM_ROWS) * bool(work.slots))
    columns = torch.zeros(slots, wide + 2 * heads * q.shape[2], dtype=torch.float32, device=q.device)
    of_v, of_q, of_k = torch.split(columns, [wide, heads * q.shape[2], heads * q.shape[2]], dim=1)
    with on_device_of(q):
        backward_rows_into(d_q, d_out, q, k, v, call, Sloped(before[0:1], (of_q,)))
        backward_keys_into(d_k, d_v, d_out, q, k, v, call, Sloped(before[1:], (of_k, of_v)))
    return columns


@dataclass(frozen=True, eq=False)
class Sloped:
    """What a backward pass needs to go on through SiLU: its inputs, and a row for the sums of each program."""

    before: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]


def _sloped(sloped: Sloped | None, unused: Tensor, count: int, start: int = 0) -> tuple[list[Tensor], int]:
    """Return the kernels' pointers, sums from row `start` on, and the stride of the sums."""
    if sloped is None:
        return [unused] * 2 * count, 0
    columns = sloped.columns
    return [*sloped.before, *(x[start:] for x in columns)], columns[0].stride(0)


def backward_rows_into(
    d_q: Tensor, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: Call, sloped: Sloped | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Write the gradient of `q` to `d_q`; return those of the bias tables."""
    heads, (distances, buckets) = q.shape[1], call.tables.sizes
    blocks = _blocks("rows", call, q, v)
    items = call.batch.rows(blocks.rows)
    programs = items.shape[0] * heads
    parts = [d_q.new_zeros(programs, size, dtype=torch.float32) for size in (distances, buckets)]
    slant = 2 * blocks.rows * max(blocks.rows, blocks.keys) * bool(distances)
    if programs:
        tensors = (q, k, v, d_out, d_q)
        slopes, sum_token = _sloped(sloped, d_q, 1)
        attention_backward_rows[(programs,)](
            *tensors, items, *call.tables.pointers(d_q), *parts, d_q.new_empty(programs, slant, dtype=torch.float32),
            *slopes, *_strides(tensors), *call.scalars, sum_token, **_constants(call.batch, q, v, blocks),
            **call.tables.constants(), PADDED=padded_dim(max(buckets, 1)), SLOPED=sloped is not None,
            **_options(blocks),
        )  # fmt: skip
    position, time = (
        part.view(-1, heads, part.shape[1]).sum(0) / call.scale_length if part.shape[1] else None for part in parts
    )
    return position, time


def backward_keys_into(
    d_k: Tensor,
    d_v: Tensor,
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: Call,
    sloped: Sloped | None = None,
) -> None:
    """Write the gradients of `k` and `v` to `d_k` and `d_v`."""
    blocks = _blocks("keys", call, q, v)
    work = call.batch.keys(blocks.keys, blocks.rows)
    if not work.items.shape[0]:
        return
    heads, constants = q.shape[1], _constants(call.batch, q, v, blocks)
    shape = (work.slots, heads, blocks.keys)
    parts = [torch.empty(*shape, x.shape[2], dtype=torch.float32, device=q.device) for x in (k, v)]
    tensors = (q, k, v, d_out, d_k, d_v)
    slopes, sum_token = _sloped(sloped, d_k, 2)
    attention_backward_keys[(work.items.shape[0] * heads,)](
        *tensors, *parts, work.items, *call.tables.pointers(d_k), *slopes, *_strides(tensors), *call.scalars, sum_token,
        **constants, **call.tables.constants(), SLOPED=sloped is not None, **_options(blocks),
    )  # fmt: skip
    if work.slots:
        names = ("M", "CONTEXT", "TARGETS", "HEADS", "D_QK", "D_V", "P_QK", "P_V", "BN", "FAST")
        slopes, sum_token = _sloped(sloped, d_k, 2, work.items.shape[0])
        attention_backward_sum[(work.sums.shape[0] * heads * (blocks.keys // SUM_ROWS),)](
            *parts, d_k, d_v, work.sums, *slopes, *_strides((d_k, d_v)), sum_token,
            **{name: constants[name] for name in names}, ROWS=SUM_ROWS, SLOPED=sloped is not None, num_warps=4,
        )  # fmt: skip


def _blocks(kernel: Kernel, call: Call, q: Tensor, v: Tensor) -> Blocks:
    padded = max(padded_dim(q.shape[2]), padded_dim(v.shape[2]))
    shape = call.batch.shape
    average = shape.total / max(shape.batch, 1)
    biased = any(call.tables.sizes)
    mask, chosen = call.batch.mask, call.chosen
    return blocks_for(kernel, mask, padded, q.element_size(), biased=biased, average=average, chosen=chosen)


def _strides(tensors: tuple[Tensor, ...]) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _constants(batch: Batch, q: Tensor, v: Tensor, blocks: Blocks) -> dict[str, Any]:
    exact = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "M": batch.mask,
        "CONTEXT": batch.shape.context is not None,
        "TARGETS": batch.shape.targets is not None,
        "HEADS": q.shape[1],
        "D_QK": q.shape[2],
        "D_V": v.shape[2],
        "P_QK": padded_dim(q.shape[2]),
        "P_V": padded_dim(v.shape[2]),
        "BM": blocks.rows,
        "BN": blocks.keys,
        "JOINED": blocks.joined,
        "FAST": q.dtype != torch.float32 and not interpreted(),
        "PRECISION": "ieee" if exact or interpreted() else "tf32",
    }


def _options(blocks: Blocks) -> dict[str, int]:
    return {"num_warps": blocks.warps, "num_stages": blocks.stages}
