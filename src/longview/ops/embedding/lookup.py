"""Rows of a table by id, with a gradient that is summed by id: dense, or sparse with one row a lookup."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.ops.embedding.path import Path, sums_of


class EmbeddingLookup(torch.autograd.Function):
    """`apply(table, ids, sparse, path)` → rows (n, D) of `ids` (n,)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, sparse: bool, path: Path) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.settings = sparse, path, table.dtype, table.shape
        return table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        sparse, path, dtype, shape = ctx.settings
        found = (sparse_gradient if sparse else sums_of(path))(ids, grads[0], dtype, shape)
        return found, None, None, None


def sparse_gradient(ids: Tensor, rows: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return a sparse (V, D) tensor of `rows` (n, D) at `ids` (n,), repeats and all: what a table's `grad` may be."""
    return torch.sparse_coo_tensor(ids[None], rows.to(dtype), shape, check_invariants=False)
