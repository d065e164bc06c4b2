# mypy: disable-error-code="no-untyped-call"
"""The memory losses on a GPU: the kernels of `triton_walk` and `triton_finish`, launched on what is `prepared`.

Losses and gradients are made together in the forward pass; the backward pass multiplies. Bits do not depend on the
run: every sum has one order, and splits are joined in theirs.

Shapes: n anchors, d width.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longview.ops.kernels import on_device_of
from longview.ops.launch import Place, launch
from longview.ops.memory_loss import triton_finish, triton_match, triton_walk
from longview.ops.memory_loss.forms import Form, plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.memory_loss.prepared import Prepared, Walk, restarts
from longview.ops.softmax_loss.numerics import LOG2_E, refuse_second_derivative
from longview.ops.softmax_loss.triton_tile import Tile


class FusedMemoryLoss(torch.autograd.Function):
    """`apply(embeddings, reference, pairs, loss, view, reduction, tile)` → a scalar, or losses of the anchors (b,).

    `reduction`: `mean`, `sum`, `apart` (the contrastive loss over active pairs) or `none`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        loss: PairLoss,
        view: View,
        reduction: str,
        tile: tuple[Tile, int] | None,
    ) -> Tensor:
        """Return the losses of the anchors (b,), and keep their gradient (b, d), made on the way."""
        with on_device_of(reference):
            problem = Prepared(embeddings, reference, pairs, view, plan_of(loss), tile, ctx.needs_input_grad[0])
            losses, grads = solve(problem, reduction)
        ctx.save_for_backward(grads)
        if reduction == "none":
            return losses
        return losses.mean() if reduction == "mean" else losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (own,) = ctx.saved_tensors
        if own is None:
            return (None,) * 7
        given = grads[0] if grads[0].dim() == 0 else grads[0].to(own.dtype)[:, None]
        return own * given, None, None, None, None, None, None


def solve(problem: Prepared, reduction: str) -> tuple[Tensor, Tensor | None]:
    """Return the losses (n,) float32 and the gradients of the anchors (n, d), divided as `reduction` says."""
    plan, apart, positives, negatives = problem.plan, reduction == "apart", problem.positives, problem.negatives
    # The number of pairs over a margin is also the sum of their weights, but for rows that are divided by norms.
    walk = partial(_walk, problem, count=apart or not problem.norm)
    if plan.positives_first:
        walk(plan.positives, positives, positives, 1)
        walk(plan.negatives, negatives, positives, plan.positives.sign)
    else:
        walk(plan.negatives, negatives, negatives, 1)
        walk(plan.positives, positives, negatives, 1)
    losses = torch.empty(problem.n, dtype=torch.float32, device=problem.memory.device)
    grads = torch.empty_like(problem.embeddings) if problem.gradient else None
    scales = losses
    if apart:
        counts = [walk.second.tensor().sum() for walk in (positives, negatives)]
        scales = 1 / torch.stack(counts).clamp(min=1)
    dims = min(triton_finish.DIMS, problem.sizes["PADDED"])
    launch(
        triton_finish.finish, (-(-problem.n // triton_finish.ROWS), -(-problem.width // dims)), problem.name,
        (positives.first, positives.second, positives.third, positives.mass, positives.grads,
         negatives.first, negatives.second, negatives.mass, negatives.grads,
         problem.order, problem.memory, problem.inverses, problem.scale, problem.shift, scales, losses,
         losses if grads is None else grads, problem.n, positives.splits, negatives.splits,
         plan.rate_p, plan.rate_n, plan.margin, float(plan.positives.sign),
         1 / problem.n if reduction == "mean" else 1.0),
        {"KIND": plan.kind, "APART": apart, "AFFINE": problem.affine, "NORM": problem.norm, "SEEN": problem.pieced,
         "SHARE": negatives.share, "GRAD": problem.gradient, "ROWS": triton_finish.ROWS, "DIMS": dims,
         "WIDTH": problem.width},
    )  # fmt: skip
    return losses, grads


def _walk(problem: Prepared, form: Form, walk: Walk, before: Walk, given_sign: int, *, count: bool) -> None:
    """Sum what `form` says of its pairs; `before` is the other walk, where that came first."""
    gather = form.pairs == "positive"
    less = form.sums == "best" and not gather and before is not walk
    seen = problem.pieced and not gather
    pieces = range(0, max(1, problem.tiles), problem.per_piece) if seen else range(1)
    queries, memory = (problem.plain, problem.seen) if seen else (problem.queries, problem.memory)
    for redo, piece in itertools.product((False, True) if restarts(form) else (False,), pieces):
        if len(pieces) > 1 and (redo or piece > 0):
            _copy(problem, piece, walk.wrongs, redo)
        launch(
            triton_walk.walk, (problem.blocks, walk.splits), (problem.name, before.second.dtype),
            (queries, memory, problem.own_codes, problem.codes, problem.own_ids, problem.row_ids, problem.own_rows,
             problem.inverses, problem.constants, problem.rows, problem.counts, problem.words, problem.segment_words,
             before.first, before.second, walk.first, walk.second, walk.third, walk.mass, walk.grads, walk.wrongs,
             problem.n, problem.held if seen and piece == 0 else problem.m, walk.each, piece, problem.per_piece,
             before.splits, problem.blocks_per_bit, form.factor * LOG2_E, form.u, form.v, float(given_sign)),
            {"FORM": form.sums, "PAIRS": form.pairs, "SIGN": form.sign, "LESS": less, "GATHER": gather,
             "REDO": redo, "PIECES": piece > 0, "SHARE": walk.share, "IDS": problem.ids, "ROWS_OUT": problem.rows_out,
             "AFFINE": problem.affine and not seen, "NORM": problem.norm and not seen,
             "COUNT": count or seen, "GRAD": walk.grads.size > 0, "SEGMENT": problem.segment, "ROWS": problem.tile.rows,
             "ITEMS": min(problem.tile.items, triton_walk.LISTED) if gather else problem.tile.items, **problem.sizes},
            **triton_walk.options(problem.tile, problem.per_processor, gather),
        )  # fmt: skip


def _copy(problem: Prepared, piece: int, wrongs: Place, redo: bool) -> None:
    """Hold the rows from tile `piece` on as they are seen."""
    first = piece * problem.tile.items
    held = min(problem.held, problem.m - first)
    launch(
        triton_match.copy_rows, (-(-held // problem.norms), 1), problem.name,
        (problem.memory, problem.scale, problem.shift, problem.seen, wrongs, problem.m, first, held, wrongs.size),
        {"AFFINE": problem.mapped, "REDO": redo, "NORMS": problem.norms, **problem.sizes},
    )  # fmt: skip
