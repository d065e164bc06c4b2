"""What attention refuses: each message names the argument, what it was, and what it should be.

Values of offsets and lengths are looked at on the CPU only: on a GPU that would wait for the device, which looks
itself (`work.demand`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.mask import MaskSpec


def check_scalars(alpha: float, scale_length: float) -> None:
    """Refuse a scale that is no finite number."""
    if not math.isfinite(alpha):
        raise InputError(f"attention: alpha is {alpha}; expected a finite number")
    if not (scale_length > 0 and math.isfinite(scale_length)):
        raise InputError(f"attention: scale_length is {scale_length}; expected a positive number, fixed in the model")


def check_queries(q: Tensor, k: Tensor, query_offsets: Tensor, offsets: Tensor) -> None:
    """Refuse queries that are not the newest tokens of their sequences."""
    _check_tensor("q", q, k)
    _check_tensor("query_offsets", query_offsets, k)
    if q.dim() != 3 or q.shape[1:] != k.shape[1:] or q.dtype != k.dtype:
        given = f"{q.dtype} {tuple(q.shape)}"
        raise InputError(f"attention: q is {given}; expected {k.dtype} (queries, {k.shape[1]}, {k.shape[2]}) as k")
    if query_offsets.shape != offsets.shape or query_offsets.dtype != torch.int64:
        given = f"{query_offsets.dtype} {tuple(query_offsets.shape)}"
        raise InputError(f"attention: query_offsets is {given}; expected int64 of shape {tuple(offsets.shape)}")
    if query_offsets.device.type == "cpu":
        asked = query_offsets.diff()
        if int(query_offsets[0]) != 0 or int(query_offsets[-1]) != q.shape[0] or bool((asked < 0).any()):
            raise InputError(f"attention: query_offsets do not run from 0 to {q.shape[0]}, the queries in q")
        over = asked > offsets.diff()
        if bool(over.any()):
            raise InputError(f"attention: sequence {int(over.nonzero()[0])} has more queries than tokens")


def _check_tensor(name: str, x: object, beside: Tensor) -> None:
    """Refuse what is no tensor, or one on another device than `beside`: a kernel would read memory of another."""
    if not isinstance(x, Tensor):
        raise InputError(f"attention: {name} is a {type(x).__name__}; expected a tensor")
    if isinstance(beside, Tensor) and x.device != beside.device:
        raise InputError(f"attention: {name} is on {x.device} and the others on {beside.device}; expected one device")


def check_tokens(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: MaskSpec) -> None:
    """Refuse keys, values and offsets that do not belong to the queries."""
    if not isinstance(mask, MaskSpec):
        raise InputError(f"attention: mask is a {type(mask).__name__}; expected a MaskSpec, e.g. MaskSpec.causal()")
    for name, x in (("q", q), ("k", k), ("v", v), ("offsets", offsets)):
        _check_tensor(name, x, q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3:
            raise InputError(f"attention: {name} has shape {tuple(x.shape)}; expected (total, heads, dimension)")
        if not x.is_floating_point() or x.dtype != q.dtype:
            raise InputError(f"attention: {name} is {x.dtype} and q {q.dtype}; expected one floating dtype for all")
    if k.shape != q.shape:
        raise InputError(f"attention: k has shape {tuple(k.shape)}, q {tuple(q.shape)}; they must be equal")
    if v.shape[:2] != q.shape[:2]:
        raise InputError(
            f"attention: v has {v.shape[0]} tokens and {v.shape[1]} heads, q has {q.shape[0]} and {q.shape[1]}"
        )
    for name, x in (("q", q), ("v", v)):
        if x.shape[1] == 0 or x.shape[2] == 0:
            raise InputError(f"attention: {name} has shape {tuple(x.shape)}; heads and dimension must be at least 1")
    if offsets.dim() != 1 or offsets.numel() == 0 or offsets.dtype != torch.int64:
        shape, dtype = tuple(offsets.shape), offsets.dtype
        raise InputError(f"attention: offsets is {dtype} of shape {shape}; expected int64 of shape (batch + 1,)")
    if offsets.device.type == "cpu":
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != q.shape[0]:
            raise InputError(
                f"attention: offsets run from {first} to {last}; expected 0 to {q.shape[0]}, the tokens of q"
            )
        if bool((offsets.diff() < 0).any()):
            at = int((offsets.diff() < 0).nonzero()[0])
            raise InputError(f"attention: offsets decrease at sequence {at}; they are cumulative lengths")


def check_lengths(
    offsets: Tensor, context: Tensor | None, targets: Tensor | None, max_length: int | None = None
) -> None:
    """Refuse lengths that are not those of the sequences, as far as values are at hand."""
    batch = offsets.numel() - 1
    if max_length is not None and offsets.device.type == "cpu" and bool((offsets.diff() > max_length).any()):
        longest = int(offsets.diff().max())
        raise InputError(f"attention: max_length is {max_length}, but a sequence has {longest} tokens; leave it out")
    for name, lengths in (("context_lengths", context), ("target_lengths", targets)):
        if lengths is None:
            continue
        _check_tensor(name, lengths, offsets)
        if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
            shape, dtype = tuple(lengths.shape), lengths.dtype
            raise InputError(f"attention: {name} is {dtype} of shape {shape}; expected integers of shape ({batch},)")
        if lengths.device.type == "cpu" and bool((lengths < 0).any()):
            raise InputError(f"attention: {name} of sequence {int((lengths < 0).nonzero()[0])} is negative")
    used = [lengths for lengths in (context, targets) if lengths is not None]
    if used and all(x.device.type == "cpu" for x in (offsets, *used)):
        over = sum(used) > offsets.diff()
        if bool(over.any()):
            at = int(over.nonzero()[0])
            raise InputError(f"attention: sequence {at} has more context and target tokens than tokens")


def check_bias(bias: RelativeBias, q: Tensor) -> None:
    """Refuse tables of other heads, and times that are not those of the tokens."""
    total, heads = q.shape[:2]
    for name, given in (("position", bias.position), ("time", bias.time), ("timestamps", bias.timestamps)):
        if given is not None:
            _check_tensor(f"bias.{name}", given, q)
    for name, table in (("position", bias.position), ("time", bias.time)):
        if table is not None and (table.dim() != 2 or table.shape[0] != heads or table.shape[1] == 0):
            raise InputError(f"attention: bias.{name} has shape {tuple(table.shape)}; expected ({heads} heads, >= 1)")
    if bias.time is not None and bias.timestamps is None:
        raise InputError("attention: bias.time needs bias.timestamps; this batch has none")
    if bias.timestamps is not None and bias.timestamps.shape != (total,):
        raise InputError(f"attention: bias.timestamps has shape {tuple(bias.timestamps.shape)}; expected ({total},)")
