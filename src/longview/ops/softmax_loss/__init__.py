"""Softmax losses over a catalogue that never hold queries × items.

`full_softmax_loss` sees every item; `sampled_softmax_loss` the target and a few negatives. Both accumulate in float32
and do their matrix products in the autocast dtype where autocast is on. The blocked path (`full.py`, `sampled.py`)
computes loss and gradients block by block in the forward pass; the kernels (`fused_*.py`, `triton_*.py`) hold no
logits at all and are bit for bit repeatable; for wide vectors `fused_blocks.py` writes blocks of weights and leaves
their products to the vendor's library. `path.py` chooses, `reference.py` says the same densely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.softmax_loss.full import FullSoftmaxLoss
from longview.ops.softmax_loss.path import Path, path_for
from longview.ops.softmax_loss.sampled import Sample, SampledSoftmaxLoss

__all__ = ["full_softmax_loss", "sampled_softmax_loss"]


def full_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    counted: Tensor | None = None,
    block: int | None = None,
    path: Path | None = None,
) -> Tensor:
    """Return the mean cross-entropy of `targets` under softmax(queries @ items.T / temperature), a scalar.

    Args:
        queries: (n, d) floating point.
        items: (num_items, d) floating point.
        targets: (n,) int64 catalogue indices.
        temperature: positive; divides the logits.
        label_smoothing: in [0, 1): the weight spread evenly over the catalogue.
        counted: (n,) bool: the mean is over these rows; the others only take room, have no gradient and give none.
            Where none counts, the loss is 0. None = all rows.
        block: queries a block; by default 8 MB of logits on a CPU, 512 MB on an accelerator (and 64 rows at least).
        path: `blocked`, `triton` (logits stay in registers) or `triton-blocked` (kernels write blocks of weights; the
            full softmax alone); None = the kernels that `path.py` says pay on a GPU, else blocks.

    Gradients reach `queries` and `items`; there is no second derivative.

    Example:
        >>> queries, items = torch.eye(2), torch.eye(2)
        >>> round(full_softmax_loss(queries, items, torch.tensor([0, 1])).item(), 4)  # log(1 + e) - 1
        0.3133

    Raises:
        InputError: shapes, dtypes or settings that do not fit; the message gives both.
    """
    _check(queries, items, targets, temperature, block)
    queries = _only_counted(queries, counted)
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    chosen = path_for("full", queries, items, path, block)
    if chosen == "triton":
        from longview.ops.softmax_loss.fused_full import FusedFullSoftmaxLoss

        return _scalar(FusedFullSoftmaxLoss, queries, items, targets, temperature, label_smoothing, None, counted)
    if chosen == "triton-blocked":
        from longview.ops.softmax_loss.fused_blocks import BlockedFullSoftmaxLoss

        return _scalar(BlockedFullSoftmaxLoss, queries, items, targets, temperature, label_smoothing, None, counted)
    return _scalar(FullSoftmaxLoss, queries, items, targets, temperature, label_smoothing, block, counted)


def sampled_softmax_loss(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 1.0,
    negative_log_q: Tensor | None = None,
    target_log_q: Tensor | None = None,
    counted: Tensor | None = None,
    block: int | None = None,
    path: Path | None = None,
    sparse: bool = False,
) -> Tensor:
    """Return the mean cross-entropy of each target among itself and its negatives, a scalar.

    `negatives` (m,) serve all queries; (groups, m) serve equal runs of ceil(n / groups) queries each, in order.
    A negative equal to a query's target is left out for that query. With `negative_log_q` (shape of `negatives`)
    and `target_log_q` (n,), the log of how often a sampler draws each, logits are corrected so that the loss
    estimates the full softmax (Bengio and Senécal 2008; Yi et al. 2019). With `sparse` the gradient of `items` is
    a sparse tensor that holds a row for each target and negative, which `ops.embedding.RowwiseOptimiser` takes;
    a dense one costs a pass over the table. Other arguments as in `full_softmax_loss`.

    Example:
        >>> items = torch.eye(3)
        >>> round(sampled_softmax_loss(items[:2], items, torch.tensor([0, 1]), torch.tensor([1, 2])).item(), 4)
        0.4324

    Raises:
        InputError: shapes, dtypes or settings that do not fit; the message gives both.
    """
    _check(queries, items, targets, temperature, block)
    queries = _only_counted(queries, counted)
    if negatives.dim() not in (1, 2) or negatives.dtype != torch.int64:
        raise InputError(f"negatives must be (m,) or (groups, m) int64, got {_of(negatives)}")
    for name, log_q, like in (("negative", negative_log_q, negatives), ("target", target_log_q, targets)):
        if log_q is not None and log_q.shape != like.shape:
            raise InputError(f"{name}_log_q must have the shape of the {name}s {tuple(like.shape)}, got {_of(log_q)}")
    width = negatives.shape[-1]
    sample = Sample(
        negatives.view(-1, width), None if negative_log_q is None else negative_log_q.view(-1, width), target_log_q
    )
    if path_for("sampled", queries, items, path, block) == "triton":
        from longview.ops.softmax_loss.fused_sampled import FusedSampledSoftmaxLoss

        return _scalar(FusedSampledSoftmaxLoss, queries, items, targets, sample, temperature, sparse, None, counted)
    return _scalar(SampledSoftmaxLoss, queries, items, targets, sample, temperature, sparse, block, counted)


def _only_counted(queries: Tensor, counted: Tensor | None) -> Tensor:
    """Return `queries` with zeros where a row does not count: no item gets a gradient from a query of zero."""
    if counted is None:
        return queries
    if counted.shape != queries.shape[:1] or counted.dtype != torch.bool:
        raise InputError(f"counted must be ({len(queries)},) bool, one a query, got {_of(counted)}")
    return torch.where(counted[:, None], queries, 0)


def _scalar(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    loss: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def _check(queries: Tensor, items: Tensor, targets: Tensor, temperature: float, block: int | None) -> None:
    if queries.dim() != 2 or items.dim() != 2 or queries.shape[1] != items.shape[1]:
        raise InputError(f"queries (n, d) and items (num_items, d) expected, got {_of(queries)} and {_of(items)}")
    if not (queries.is_floating_point() and items.is_floating_point()):
        raise InputError(f"queries and items must be floating point, got {queries.dtype} and {items.dtype}")
    if targets.shape != queries.shape[:1] or targets.dtype != torch.int64:
        raise InputError(f"targets must be ({len(queries)},) int64, one a query, got {_of(targets)}")
    if not len(queries) or not len(items):
        raise InputError(f"at least one query and one item expected, got {_of(queries)} and {_of(items)}")
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    if block is not None and block < 1:
        raise InputError(f"block must be at least 1 row, got {block}")


def _of(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
