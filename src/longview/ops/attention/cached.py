"""Candidates behind cached keys and values: the form of attention that scoring repeats, with nothing put together.

`triton_cached.py` is the GPU's path; elsewhere keys and values are joined, which is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.newest import newest_rows
from longview.ops.attention.triton_tuning import SHIPPED, ChosenBlocks
from longview.ops.attention.work import demand, none_negative
from longview.ops.jagged import concat_rows
from longview.ops.kernels import why_no_triton

WIDEST = 256  # head dimension of the kernel


@dataclass(frozen=True, eq=False)
class CandidateWork:
    """The candidates of some users, and their blocks: made on the device without waiting for it, once for all layers.

    Attributes:
        offsets: (users + 1,) int64, where each user's candidates begin; the last is `total`.
        total: candidates of all users.
    """

    offsets: Tensor
    total: int
    _blocks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _demanded: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def blocks(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the user of each block of `size` candidates, or how many users there are where a place is vacant,
        and the running sum of the users' blocks; (places,) and (users,) int64."""
        if size not in self._blocks:
            last = ((self.offsets.diff() + (size - 1)) // size).cumsum(0)
            places = torch.arange(self.total // size + len(last), device=last.device)
            self._blocks[size] = torch.searchsorted(last, places, right=True), last
        return self._blocks[size]

    def demand(self, cache: CachedKeys) -> None:
        """Stop where candidates or cached tokens lie outside of their tensors (`work.demand`); layers ask once."""
        if any(seen is cache.offsets for seen in self._demanded):
            return
        self._demanded.append(cache.offsets)
        own, lengths, context = self.offsets, cache.offsets.diff(), cache.context_lengths
        ends = torch.cat([own[:1], own[-1:] - self.total])
        slack = [own.diff(), lengths, cache.offsets[:1], len(cache.keys) - cache.offsets[-1:]]
        slack += [] if context is None else [context, lengths - context]
        demand(
            none_negative(*slack, ends, -ends),
            f"attention: offsets of candidates must rise from 0 to {self.total}, those of the cache stay within its "
            f"{len(cache.keys)} tokens, and its context within its sequences",
        )


@dataclass(frozen=True, eq=False)
class CachedKeys:
    """Keys and values of some users of one layer: (tokens, heads, d), any token and head stride, with their offsets
    (users + 1,) int64 and the context in front (users,), or None."""

    keys: Tensor
    values: Tensor
    offsets: Tensor
    context_lengths: Tensor | None = None


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    work: CandidateWork,
    cache: CachedKeys,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    blocks: ChosenBlocks = SHIPPED,
    kernel: bool | None = None,
) -> Tensor:
    """Return what candidates behind a cache see of it and of themselves; no gradient.

    Args:
        q, k: (candidates, heads, d_qk) and v: (candidates, heads, d_v) of the candidates alone, of the cache's dtype.
        work: whose candidates they are.
        cache: what they see, as far as `mask` lets targets: `[context | history]`, or of an append-exact mask what
            `newest_rows_attention` says may stand for it.
        mask, alpha, scale_length: as in `semi_local_attention`; each candidate is a group of its own.
        blocks: block sizes of the forward kernel.
        kernel: whether the Triton kernel does it; None = where it can.

    Returns:
        (candidates, heads, d_v), dtype of v. A user's rows have the same bits whoever else is in the batch.

    Raises:
        InputError: groups of candidates, or another dtype than the cache's.
    """
    if mask.target_group != 1:
        raise InputError(f"attention: candidates in groups of {mask.target_group} see each other; join them instead")
    if {x.dtype for x in (q, k, v)} != {cache.keys.dtype} or cache.values.dtype != cache.keys.dtype:
        given = ", ".join(str(x.dtype) for x in (q, k, v))
        raise InputError(f"attention: q, k and v are {given}, and the cache {cache.keys.dtype}; expected one dtype")
    for name, x, wanted in (("k", k, q.shape), ("v", v, (*q.shape[:2], cache.values.shape[2]))):
        if x.shape != wanted:
            raise InputError(
                f"attention: {name} has shape {tuple(x.shape)}; expected {tuple(wanted)} beside q and cache"
            )
    if cache.keys.shape[1:] != q.shape[1:] or cache.values.shape[:2] != cache.keys.shape[:2]:
        given = f"keys {tuple(cache.keys.shape)} and values {tuple(cache.values.shape)}"
        raise InputError(f"attention: the cache has {given}, and q {tuple(q.shape)}; heads and sizes must be equal")
    if work.total != len(q) or work.offsets.shape != cache.offsets.shape:
        given = f"{work.total} candidates of {work.offsets.numel() - 1} users"
        users = cache.offsets.numel() - 1
        raise InputError(f"attention: work is of {given}; q has {len(q)} candidates and the cache {users} users")
    work.demand(cache)
    if kernel and (reason := why_no_kernel(q, v, q.device)) is not None:
        raise InputError(f"attention: the kernel cannot do this: {reason}; leave kernel out")
    if kernel is None:
        kernel = why_no_kernel(q, v, q.device) is None and q.is_cuda
    with torch.no_grad():
        if kernel:
            from longview.ops.attention.triton_cached import triton_cached_attention

            return triton_cached_attention(
                q, k, v, work, cache, mask, alpha=alpha, scale_length=scale_length, chosen=blocks
            )
        rows = concat_rows(cache.offsets, work.offsets, len(cache.keys), len(q))
        keys, values = torch.cat([cache.keys, k])[rows], torch.cat([cache.values, v])[rows]
        offsets, targets = cache.offsets + work.offsets, work.offsets.diff()
        return newest_rows(
            q,
            keys,
            values,
            work.offsets,
            offsets,
            mask,
            alpha=alpha,
            scale_length=scale_length,
            context_lengths=cache.context_lengths,
            target_lengths=targets,
        )


def why_no_kernel(q: Tensor, v: Tensor, device: torch.device) -> str | None:
    """Return why the kernel cannot do `cached_attention` of such heads, in a sentence, or None where it can."""
    reason = why_no_triton(device)
    if reason is not None:
        return reason
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{q.dtype} is not float32, bfloat16 or float16"
    if max(q.shape[2], v.shape[2]) > WIDEST:
        return f"heads of {q.shape[2]} and {v.shape[2]} are wider than {WIDEST}"
    return None
