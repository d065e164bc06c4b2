"""Embedding tables whose gradients are summed by id, once and in a fixed order.

    from longview.ops.embedding import RowwiseAdamW, embedding_lookup

`embedding_lookup` is `nn.functional.embedding` with a deterministic gradient on a GPU; with `sparse=True` and a
`RowwiseAdagrad` or `RowwiseAdamW` no dense gradient exists and only touched rows are read and written. `summed_lookup`
adds rows of several tables, with dropout, in one pass of a GPU. `dedup.py` sorts the ids, `triton_segments.py` holds
the kernels of the gradient, `reference.py` says the same in plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.embedding.dedup import Segments, group_ids
from longview.ops.embedding.lookup import EmbeddingLookup, sparse_gradient
from longview.ops.embedding.path import Path, path_for, sums_of
from longview.ops.embedding.rowwise import RowwiseAdagrad, RowwiseAdamW, RowwiseOptimiser
from longview.ops.embedding.summed import Term, summed_lookup, why_not_summed

__all__ = [
    "RowwiseAdagrad",
    "RowwiseAdamW",
    "RowwiseOptimiser",
    "Segments",
    "Term",
    "embedding_lookup",
    "group_ids",
    "sparse_gradient",
    "sum_by_id",
    "summed_lookup",
    "why_not_summed",
]


def embedding_lookup(table: Tensor, ids: Tensor, *, sparse: bool = False, path: Path | None = None) -> Tensor:
    """Return the rows of `table` at `ids`.

    Args:
        table: (V, D) floating point.
        ids: any shape, int64, in 0 to V - 1.
        sparse: make the table's gradient a sparse tensor with a row for each lookup, which
            `RowwiseOptimiser.step_gradient` and torch's sparse optimisers take; else a dense (V, D) one, summed by id
            in float32.
        path: `torch` or `triton`; None = the kernels on a GPU that can run them, else plain torch.

    Returns:
        (*ids.shape, D), of the table's dtype.

    Example:
        >>> table = torch.eye(3, requires_grad=True)
        >>> embedding_lookup(table, torch.tensor([2, 0, 2])).sum().backward()
        >>> table.grad[:, 0]
        tensor([1., 0., 2.])

    Raises:
        InputError: shapes or dtypes that do not fit; a path that cannot run here, with the reason.
    """
    if table.dim() != 2 or not table.is_floating_point():
        raise InputError(f"a floating point table (V, D) expected, got {tuple(table.shape)} {table.dtype}")
    if ids.dtype != torch.int64:
        raise InputError(f"ids must be int64, got {ids.dtype}")
    rows: Tensor = EmbeddingLookup.apply(  # type: ignore[no-untyped-call]
        table, ids.flatten(), sparse, path_for(table, path)
    )
    return rows.view(*ids.shape, table.shape[1])


def sum_by_id(ids: Tensor, grads: Tensor, dtype: torch.dtype, shape: torch.Size, *, path: Path | None = None) -> Tensor:
    """Return a (V, D) tensor of `dtype` that holds at each row the sum of the rows of `grads` (n, D) with that id.

    Sums are float32 (float64 for float64). Other arguments as in `embedding_lookup`.

    Example:
        >>> sum_by_id(torch.tensor([1, 1]), torch.ones(2, 1), torch.float32, torch.Size((2, 1)))
        tensor([[0.],
                [2.]])

    Raises:
        InputError: a path that cannot run here, with the reason.
    """
    like = grads.new_empty((0, shape[1]), dtype=dtype)
    return sums_of(path_for(like, path))(ids, grads, dtype, shape)
