# mypy: disable-error-code="index, no-untyped-call"
"""Launches of the kernels in `triton_segments`: sums by id, and optimisers that act on them in the same pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longview.ops.embedding import triton_segments as kernels
from longview.ops.embedding.dedup import Segments, group_ids
from longview.ops.kernels import on_device_of, padded_dim


class Rule(NamedTuple):
    """What is done with the sum of a row: the settings of `triton_segments.apply_rule`, by its names."""

    number: int
    eps: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    decay: float = 0.0
    seed: int = 0


class Moment(NamedTuple):
    """What differs from step to step, on the device, so that a captured step can be repeated.

    Attributes:
        now: (3,) float32; the rate and the two bias corrections of AdamW.
        steps: (1,) int64; the number of the step, from 1.
    """

    now: Tensor
    steps: Tensor


def sum_by_id(ids: Tensor, grads: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return what `reference.sum_by_id` does, from sums in float32."""
    table = grads.new_zeros(shape, dtype=dtype)
    apply_by_id(table, (), ids, grads, Rule(kernels.PUT.value))
    return table


def squared_norm(ids: Tensor, grads: Tensor, num_rows: int) -> Tensor:
    """Return what `reference.squared_norm` does, from sums in float32."""
    squares = grads.new_zeros(len(ids), dtype=torch.float32)
    if len(ids):
        _launch(group_ids(ids, num_rows), squares, (squares,), grads, Rule(kernels.SQUARE.value))
    return squares.sum()


def adagrad_(table: Tensor, squares: Tensor, ids: Tensor, grads: Tensor, moment: Moment, *, eps: float, seed: int
             ) -> None:  # fmt: skip
    """Do what `reference.adagrad_` does; random bits of a bfloat16 table come from `seed` and the step."""
    apply_by_id(table, (squares,), ids, grads, Rule(kernels.ADAGRAD.value, eps, seed=seed), moment)


def adamw_(
    table: Tensor,
    moments: tuple[Tensor, Tensor],
    ids: Tensor,
    grads: Tensor,
    moment: Moment,
    *,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    seed: int,
) -> None:
    """Do what `reference.adamw_` does; random bits of a bfloat16 table come from `seed` and the step."""
    apply_by_id(table, moments, ids, grads, Rule(kernels.ADAMW.value, eps, *betas, decay, seed), moment)


def apply_by_id(
    table: Tensor,
    state: tuple[Tensor, ...],
    ids: Tensor,
    grads: Tensor,
    rule: Rule,
    moment: Moment | None = None,
) -> None:
    """Sum the rows of `grads` (n, D) by id and apply `rule` to the rows of `table` (V, D) and `state`, in place."""
    if len(ids):
        _launch(group_ids(ids, len(table)), table, state, grads, rule, moment)


def _launch(
    segments: Segments,
    table: Tensor,
    state: tuple[Tensor, ...],
    grads: Tensor,
    rule: Rule,
    moment: Moment | None = None,
) -> None:
    n, width = grads.shape
    order, rank, unique, offsets, count = segments
    first, second = (*state, table, table)[:2]
    grads, padded = grads.contiguous(), padded_dim(width)
    moves = rule.number in (kernels.ADAGRAD.value, kernels.ADAMW.value)
    if rule.number == kernels.SQUARE.value:
        unique = torch.arange(n, device=unique.device)  # a place a segment, whatever the size of the table
    sizes = {"WIDTH": width, "PADDED": padded, "num_warps": kernels.WARPS}
    flags = {"RULE": rule.number, "STOCHASTIC": table.dtype == torch.bfloat16 and moves}
    settings = (*(moment or (grads, order)), *rule[1:], kernels.LIMIT)  # without a step nobody reads the first two
    with on_device_of(table):
        at_once = kernels.segments_at_once(padded)
        kernels.sum_short[(-(-n // at_once),)](
            grads, order, unique, offsets, count, table, first, second, *settings, **flags, SEGMENTS=at_once, **sizes
        )
        if n > kernels.LIMIT:
            chunks = -(-n // kernels.LIMIT)
            pieces = grads.new_empty((chunks, 2, width), dtype=torch.float32)
            sizes |= {"AT_ONCE": kernels.rows_at_once(padded)}
            kernels.sum_pieces[(chunks,)](grads, order, rank, offsets, pieces, n, kernels.LIMIT, **sizes)
            kernels.sum_long[(chunks,)](
                pieces, rank, unique, offsets, table, first, second, n, *settings, **flags, **sizes
            )
