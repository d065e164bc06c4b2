# mypy: disable-error-code="index, no-untyped-call"
"""The full softmax on a GPU: what the kernels of `triton_full` are launched with.

Bits depend neither on the run nor on the device: every sum has one order, and splits are joined in theirs.

Shapes: n queries, V items, d width, S splits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.ops.kernels import on_device_of, padded_dim
from longview.ops.softmax_loss import triton_full as kernels
from longview.ops.softmax_loss.numerics import LOG2_E, chained, matmul_dtype, mean_of, refuse_second_derivative, scaled
from longview.ops.softmax_loss.triton_tile import Tile, split

Tiles = tuple[Tile, Tile]  # of the forward kernel and of the gradient of the items


class FusedFullSoftmaxLoss(torch.autograd.Function):
    """`apply(queries, items, targets, temperature, label_smoothing, tiles, counted)` → mean loss, a scalar.

    `tiles` None = the table in `triton_full`. The queries' gradient is made in the forward pass, where it costs one
    product; the items' in the backward pass, so that no second table is held in between.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        temperature: float,
        label_smoothing: float,
        tiles: Tiles | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar, and keep what its gradients are made of."""
        low = matmul_dtype(queries, items)
        query_nd, item_Vd = queries.to(low).contiguous(), items.to(low).contiguous()
        problem = _Problem.of(query_nd, item_Vd, 1 / temperature, label_smoothing, tiles)
        mean_d = items.mean(0, dtype=torch.float32) if label_smoothing else None
        need_queries, need_items = ctx.needs_input_grad[:2]
        targets = targets.contiguous()
        with on_device_of(queries):
            parts = _forward(problem, query_nd, item_Vd, need_queries)
            grad = torch.empty_like(queries, memory_format=torch.contiguous_format) if need_queries else None
            losses, logs = _finish(problem, query_nd, item_Vd, targets, mean_d, parts, grad)
        ctx.save_for_backward(grad, *((query_nd, item_Vd, targets, logs) if need_items else ()))
        ctx.problem, ctx.item_dtype = problem, items.dtype
        loss, ctx.factor = mean_of(losses, counted)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grad_queries, *saved = ctx.saved_tensors
        factor, grad_items = chained(grads[0], ctx.factor).float(), None
        if saved:
            with on_device_of(factor):
                grad_items = _grad_items(ctx.problem, ctx.item_dtype, factor, *saved)
        if grad_queries is not None:
            grad_queries = scaled(grad_queries, factor)
        return grad_queries, grad_items, None, None, None, None, None


class _Problem(NamedTuple):
    """Sizes and settings; `factor` turns products into logits in units of log 2, `weight` p into gradients."""

    n: int
    num_items: int
    factor: float
    weight: float
    smoothing: float
    tiles: Tiles
    width: dict[str, int]

    @classmethod
    def of(cls, query_nd: Tensor, item_Vd: Tensor, scale: float, smoothing: float, tiles: Tiles | None) -> _Problem:
        n, width = query_nd.shape
        padded = padded_dim(width)
        tiles = tiles or kernels.tiles_for(padded, query_nd.dtype == torch.float32)
        sizes = {"WIDTH": width, "PADDED": padded}
        return cls(n, len(item_Vd), scale * LOG2_E, scale / n, smoothing, tiles, sizes)


def _forward(problem: _Problem, query_nd: Tensor, item_Vd: Tensor, mix: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return each split's largest logits and sums (S, n), and with `mix` its weighted items (S, n, d), float32."""
    n, tile = problem.n, problem.tiles[0]
    blocks = -(-n // tile.rows)
    splits, each = split(blocks, problem.num_items, tile.items)
    tops, totals = query_nd.new_empty((2, splits, n), dtype=torch.float32).unbind()
    mixes = query_nd.new_empty((splits, *query_nd.shape), dtype=torch.float32) if mix else None
    kernels.full_forward[blocks, splits](
        query_nd, item_Vd, tops, totals, tops if mixes is None else mixes,
        n, problem.num_items, each, problem.factor,
        MIX=mix, **tile.options(), **problem.width,
    )  # fmt: skip
    return tops, totals, mixes


def _finish(
    problem: _Problem,
    query_nd: Tensor,
    item_Vd: Tensor,
    targets: Tensor,
    mean_d: Tensor | None,
    parts: tuple[Tensor, Tensor, Tensor | None],
    grad_nd: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return losses and log2-sum-exps (n,) float32, and fill `grad_nd` where there is one."""
    tops, totals, mixes = parts
    losses, logs = tops.new_empty((2, problem.n)).unbind()
    kernels.full_finish[(-(-problem.n // kernels.SMALL),)](
        query_nd, item_Vd, targets, tops if mean_d is None else mean_d, tops, totals,
        tops if mixes is None else mixes, logs, losses, tops if grad_nd is None else grad_nd,
        problem.n, problem.num_items, len(tops), problem.factor, problem.smoothing, problem.weight,
        MIX=grad_nd is not None, SMOOTH=mean_d is not None, ROWS=kernels.SMALL, **problem.width,
    )  # fmt: skip
    return losses, logs


def _grad_items(
    problem: _Problem,
    dtype: torch.dtype,
    grad_loss: Tensor,
    query_nd: Tensor,
    item_Vd: Tensor,
    targets: Tensor,
    logs: Tensor,
) -> Tensor:
    """Return the gradient of the items, (V, d) of `dtype`."""
    smoothing, tile = problem.smoothing, problem.tiles[1]
    blocks = -(-problem.num_items // tile.items)
    splits, each = split(blocks, problem.n, tile.rows)
    grad_SVd = item_Vd.new_empty((splits, *item_Vd.shape), dtype=dtype if splits == 1 else torch.float32)
    constant_d = query_nd.sum(0, dtype=torch.float32) * (smoothing / problem.num_items) if smoothing else logs
    kernels.full_items[blocks, splits](
        query_nd, item_Vd, targets, logs, grad_loss, constant_d, grad_SVd,
        problem.n, problem.num_items, each, problem.factor, 1 - smoothing, problem.weight,
        SMOOTH=bool(smoothing), **tile.options(), **problem.width,
    )  # fmt: skip
    return grad_SVd[0] if splits == 1 else grad_SVd.sum(0).to(dtype)
