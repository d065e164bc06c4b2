# mypy: disable-error-code="index, no-untyped-call"
"""The sampled softmax on a GPU: what the kernels of `triton_sampled` are launched with.

Bits depend neither on the run nor on the device: every sum has one order, that of repeated items in `ops.embedding`
included.

Shapes: n queries, V items, d width, G groups of negatives, m negatives a group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.ops.embedding import sparse_gradient, sum_by_id
from longview.ops.kernels import on_device_of, padded_dim
from longview.ops.softmax_loss import triton_sampled as kernels
from longview.ops.softmax_loss.numerics import LOG2_E, chained, matmul_dtype, mean_of, refuse_second_derivative, scaled
from longview.ops.softmax_loss.sampled import Sample
from longview.ops.softmax_loss.triton_tile import Tile

Tiles = tuple[Tile, Tile]  # of the forward kernel and of the gradient of the negatives


class FusedSampledSoftmaxLoss(torch.autograd.Function):
    """`apply(queries, items, targets, sample, temperature, sparse, tiles, counted)` → mean loss, a scalar.

    `sparse` makes the items' gradient a sparse tensor of n + G m rows; `tiles` None = the table in `triton_sampled`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        sample: Sample,
        temperature: float,
        sparse: bool,
        tiles: Tiles | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar, and keep what its gradients are made of."""
        low = matmul_dtype(queries, items)
        queries, items, targets = queries.contiguous(), items.contiguous(), targets.contiguous()
        negatives = sample.negatives.contiguous()
        negative_log_q, target_log_q = (None if log is None else log.float().contiguous() for log in sample[1:])
        # A table wider than the products is rounded at the negatives' rows alone, a fraction of it.
        gather = items.dtype == low
        source = items if gather else items.index_select(0, negatives.flatten()).to(low)
        problem = _Problem.of(queries, negatives, 1 / temperature, low, gather, tiles)
        need = any(ctx.needs_input_grad[:2])
        query_nd, mixes = queries.to(low), torch.empty_like(queries, dtype=torch.float32) if need else None
        with on_device_of(queries):
            wanted = _target_logits(problem, queries, items, targets, target_log_q)
            losses, logs, shares = _forward(
                problem, query_nd, source, targets, wanted, Sample(negatives, negative_log_q, None), mixes
            )
            if mixes is not None:
                grad = _finish(problem, mixes, items, targets, shares, queries.dtype)
                ctx.save_for_backward(grad, queries, query_nd, source, targets, negatives, negative_log_q, logs, shares)
        ctx.problem, ctx.sparse, ctx.like = problem, sparse, (items.dtype, items.shape)
        loss, ctx.factor = mean_of(losses, counted)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grad_queries, *saved = ctx.saved_tensors
        found: list[Tensor | None] = [None, None]
        factor = chained(grads[0], ctx.factor).float()
        if ctx.needs_input_grad[0]:
            found[0] = scaled(grad_queries, factor)
        if ctx.needs_input_grad[1]:
            with on_device_of(factor):
                ids, rows = _grad_rows(ctx.problem, factor, *saved)
                found[1] = (sparse_gradient if ctx.sparse else sum_by_id)(ids, rows, *ctx.like)
        return (*found, None, None, None, None, None, None)


class _Problem(NamedTuple):
    """Sizes and settings; `factor` turns products into logits in units of log 2, `weight` p into gradients."""

    n: int
    groups: int
    size: int
    m: int
    factor: float
    weight: float
    gather: bool
    tiles: Tiles
    width: dict[str, int]

    @classmethod
    def of(
        cls, queries: Tensor, negatives: Tensor, scale: float, low: torch.dtype, gather: bool, tiles: Tiles | None
    ) -> _Problem:
        (n, width), (groups, m) = queries.shape, negatives.shape
        padded = padded_dim(width)
        tiles = tiles or kernels.tiles_for(padded, low == torch.float32)
        sizes = {"WIDTH": width, "PADDED": padded}
        return cls(n, groups, -(-n // groups), m, scale * LOG2_E, scale / n, gather, tiles, sizes)

    @property
    def small(self) -> tuple[int]:
        """The grid of kernels that take SMALL queries a program."""
        return (-(-self.n // kernels.SMALL),)


def _target_logits(problem: _Problem, queries: Tensor, items: Tensor, targets: Tensor, log_q: Tensor | None) -> Tensor:
    """Return the targets' corrected logits (n,) float32, in units of log 2."""
    wanted = queries.new_empty(problem.n, dtype=torch.float32)
    kernels.sampled_targets[problem.small](
        queries, items, targets, wanted if log_q is None else log_q, wanted, problem.n, problem.factor,
        LOG_Q=log_q is not None, ROWS=kernels.SMALL, **problem.width,
    )  # fmt: skip
    return wanted


def _forward(
    problem: _Problem,
    query_nd: Tensor,
    source: Tensor,
    targets: Tensor,
    wanted: Tensor,
    sample: Sample,
    mixes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, log2-sum-exps and p_target − 1 (n,) float32; fill `mixes` (n, d) and the last where wanted."""
    negatives, log_q, _ = sample
    tile = problem.tiles[0]
    losses, logs, shares = wanted.new_empty((3, problem.n)).unbind()
    kernels.sampled_forward[-(-problem.size // tile.rows), problem.groups](
        query_nd, source, targets, wanted, negatives, wanted if log_q is None else log_q,
        logs, losses, shares, losses if mixes is None else mixes,
        problem.n, problem.size, problem.m, problem.factor,
        MIX=mixes is not None, GATHER=problem.gather, LOG_Q=log_q is not None, **tile.options(), **problem.width,
    )  # fmt: skip
    return losses, logs, shares


def _finish(
    problem: _Problem, mixes: Tensor, items: Tensor, targets: Tensor, shares: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the queries' gradients, (n, d) of `dtype`."""
    grad = torch.empty_like(mixes, dtype=dtype)
    kernels.sampled_finish[problem.small](
        mixes, items, targets, shares, grad, problem.n, problem.weight, ROWS=kernels.SMALL, **problem.width
    )
    return grad


def _grad_rows(
    problem: _Problem,
    grad_loss: Tensor,
    queries: Tensor,
    query_nd: Tensor,
    source: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    logs: Tensor,
    shares: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the ids (n + G m,) of targets and negatives, and the gradients of their rows, float32."""
    n, tile = problem.n, problem.tiles[1]
    rows = queries.new_empty((n + negatives.numel(), queries.shape[1]), dtype=torch.float32)
    torch.mul(queries, (shares * (problem.weight * grad_loss))[:, None], out=rows[:n])
    kernels.sampled_negatives[-(-problem.m // tile.items), problem.groups](
        query_nd, source, targets, negatives, logs if log_q is None else log_q, logs, grad_loss, rows[n:],
        n, problem.size, problem.m, problem.factor, problem.weight,
        GATHER=problem.gather, LOG_Q=log_q is not None, **tile.options(), **problem.width,
    )  # fmt: skip
    return torch.cat([targets, negatives.flatten()]), rows
