# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Candidates that attend to cached keys and values where these lie: one program per block of candidates and head.

    out_i = 1/S (silu(alpha <q_i, k_i>) v_i + sum_j M_ij silu(alpha <q_i, k_j>) v_j),   j over the user's cache

A candidate sees the cache and itself, and sums of SiLU attention simply add: the cache needs no candidates in it, and
the own term is one product a row. A program reads no key beyond its user's cache.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.attention.cached import CachedKeys, CandidateWork
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_forward import column_tiles, edge_tile
from longview.ops.attention.triton_mask import pick, visible
from longview.ops.attention.triton_tile import load_rows, program_again, silu, store_rows
from longview.ops.attention.triton_tuning import SHIPPED, Blocks, ChosenBlocks, blocks_for
from longview.ops.kernels import interpreted, on_device_of, padded_dim


@triton.jit(do_not_specialize=["num_users"])
def cached_forward(
    q, k, v, cached_k, cached_v, out, users, last, offsets, cached_offsets, context,
    q_token, q_head, k_token, k_head, v_token, v_head, ck_token, ck_head, cv_token, cv_head, out_token, out_head,
    half_alpha, scale, num_users,
    M: tl.constexpr, CONTEXT: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `out`. `users` is the user of each block of BM candidates (num_users: none), `last` (users,) how many
    blocks there are up to and with each user; `context` is read with CONTEXT alone."""
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    user = tl.load(users + item)
    if user >= num_users:
        return
    begin, end = tl.load(offsets + user), tl.load(offsets + user + 1)
    cached = tl.load(cached_offsets + user)
    e = (tl.load(cached_offsets + user + 1) - cached).to(tl.int32)
    count = (end - begin).to(tl.int32)
    first, stop = _candidates(item, tl.load(last + user), count, BM)
    n, c = e + count, e * 0
    if CONTEXT:
        c = tl.load(context + user).to(tl.int32)
    q += begin * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    rows_out = out + (begin * out_token + head * out_head)
    cached_k += cached * ck_token + head * ck_head
    cached_v += cached * cv_token + head * cv_head

    q_MD = load_rows(q, first, stop, q_token, BM, D_QK, P_QK, True)
    if M.target_self:
        k_MD = load_rows(k, first, stop, k_token, BM, D_QK, P_QK, True)
        v_MD = load_rows(v, first, stop, v_token, BM, D_V, P_V, True)
        own_M = silu(tl.sum(q_MD.to(tl.float32) * k_MD.to(tl.float32), 1) * half_alpha, FAST)
        sum_MD = own_M[:, None] * v_MD.to(tl.float32)
    else:
        sum_MD = tl.zeros([BM, P_V], tl.float32)
    rows = e + first + tl.arange(0, BM)
    a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, g_stop = column_tiles(
        e + first, e + stop, c, e, n, BN, M, CONTEXT, True
    )
    whole = a_full_stop - a_full + b_full_stop - b_full
    count = whole + a_full - a + a_stop - a_full_stop + b_full - b + b_stop - b_full_stop
    for i in tl.range(0, count):
        inner = pick(i, a_full, a_full_stop - a_full, b_full + i - (a_full_stop - a_full))
        edge = edge_tile(i - whole, a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, False)
        at = tl.where(i < whole, inner, edge) * BN
        k_ND = load_rows(cached_k, at, e, ck_token, BN, D_QK, P_QK, True)
        v_ND = load_rows(cached_v, at, e, cv_token, BN, D_V, P_V, True)
        weight_MN = silu(tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha, FAST)
        if i >= whole:
            columns = at + tl.arange(0, BN)
            seen_MN = visible(rows[:, None], columns[None, :], c, e, n, M, CONTEXT, True) & (columns[None, :] < e)
            weight_MN = tl.where(seen_MN, weight_MN, 0.0)
        sum_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, sum_MD, input_precision=PRECISION)
    if P_V > 128:  # found out (again) only now: every register is taken through the loop
        program = program_again(FAST)
        item, head = program // HEADS, program % HEADS
        user = tl.load(users + item, volatile=True)
        begin, end = tl.load(offsets + user, volatile=True), tl.load(offsets + user + 1, volatile=True)
        first, stop = _candidates(item, tl.load(last + user, volatile=True), (end - begin).to(tl.int32), BM)
        rows_out = out + (begin * out_token + head * out_head)
    store_rows(rows_out, first, stop, out_token, sum_MD * scale, BM, D_V, P_V)


@triton.jit
def _candidates(item, last, count, BM: tl.constexpr):
    """Return the first candidate of block `item`, and where its block ends; `count` and `last` are of its user."""
    first = (item - (last.to(tl.int32) - (count + BM - 1) // BM)) * BM
    return first, tl.minimum(first + BM, count)


def triton_cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    work: CandidateWork,
    cache: CachedKeys,
    mask: MaskSpec,
    *,
    alpha: float,
    scale_length: float,
    chosen: ChosenBlocks = SHIPPED,
) -> Tensor:
    """Return (candidates, heads, d_v), dtype of v: what `newest_rows_attention` gives candidates (as targets) behind
    their cache. `q, k, v`: of the candidates alone, the last dimension contiguous; each is a group of its own."""
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    blocks = cached_blocks(mask, max(padded_dim(q.shape[2]), padded_dim(v.shape[2])), q.element_size(), chosen)
    users, last = work.blocks(blocks.rows)
    if not len(users):
        return out
    exact = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tensors = (q, k, v, cache.keys, cache.values, out)
    context = users if cache.context_lengths is None else cache.context_lengths
    with on_device_of(q):
        cached_forward[(len(users) * q.shape[1],)](
            *tensors, users, last, work.offsets, cache.offsets, context,
            *(stride for x in tensors for stride in x.stride()[:2]), alpha / 2, 1 / scale_length, len(last),
            M=mask, CONTEXT=cache.context_lengths is not None, HEADS=q.shape[1], D_QK=q.shape[2], D_V=v.shape[2],
            P_QK=padded_dim(q.shape[2]), P_V=padded_dim(v.shape[2]), BM=blocks.rows, BN=blocks.keys,
            FAST=q.dtype != torch.float32 and not interpreted(),
            PRECISION="ieee" if exact or interpreted() else "tf32",
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return out


def cached_blocks(mask: MaskSpec, padded: int, itemsize: int, chosen: ChosenBlocks) -> Blocks:
    """Return the block sizes: those of the forward kernel, which has the same loop."""
    return blocks_for("forward", mask, padded, itemsize, chosen=chosen)


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use, for bf16 heads."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    tensors = dict.fromkeys(("q", "k", "v", "cached_k", "cached_v", "out"), "*bf16")
    lists = dict.fromkeys(("users", "last", "offsets", "cached_offsets", "context"), "*i64")
    parts = ("q", "k", "v", "ck", "cv", "out")
    strides = {f"{part}_{kind}": "i32:16" for part in parts for kind in ("token", "head")}
    types = {**tensors, **lists, **strides, "half_alpha": "fp32", "scale": "fp32", "num_users": "i32"}
    windowed = MaskSpec(local_window=256, global_size=128, target_scope="semi_local")
    for dim, mask, context in itertools.product((64, 128, 256), (MaskSpec.causal(), windowed), (False, True)):
        blocks = cached_blocks(mask, dim, 2, SHIPPED)
        constants = {"M": mask, "CONTEXT": context, "HEADS": 4, "D_QK": dim, "D_V": dim, "P_QK": dim, "P_V": dim}
        constants |= {"BM": blocks.rows, "BN": blocks.keys, "FAST": True, "PRECISION": "tf32"}
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
        name = f"cached {dim} {mask.local_window}/{mask.global_size}{' context' if context else ''}"
        found.append((name, cached_forward, types, constants, options))
    return found
