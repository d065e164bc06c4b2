"""What every path of this package computes, in plain torch: the CPU path, and what the kernels are tested against.

Shapes: n gradient rows, U distinct ids, V rows of the table, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype sums are done in: float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_by_id(ids: Tensor, grads: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return a table (V, D) of `dtype` that holds at each row the sum of the rows of `grads` with that id."""
    table = grads.new_zeros(shape, dtype=wide_dtype(dtype))
    return table.index_add_(0, ids, grads.to(table.dtype)).to(dtype)


def distinct_sums(ids: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ids (U,) in ascending order and the sums of their rows, (U, D)."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    sums = grads.new_zeros((len(unique), grads.shape[1]), dtype=wide_dtype(grads.dtype))
    return unique, sums.index_add_(0, inverse, grads.to(sums.dtype))


def squared_norm(ids: Tensor, grads: Tensor, num_rows: int) -> Tensor:
    """Return the squared norm of the sums of rows with the same id, a scalar; ids are below `num_rows`."""
    return distinct_sums(ids, grads)[1].square().sum()


def adagrad_(
    table: Tensor,
    squares: Tensor,
    ids: Tensor,
    grads: Tensor,
    *,
    rate: float | Tensor,
    eps: float,
    generator: torch.Generator | None = None,
) -> None:
    """Move the rows `ids` of `table` by row-wise AdaGrad: one sum of mean squares a row, `squares` (V,) float32.

    Source: FBGEMM's EXACT_ROWWISE_ADAGRAD; AdaGrad itself, Duchi et al. 2011.
    """
    rows, sums = distinct_sums(ids, grads)
    squares[rows] += sums.square().mean(1).to(squares.dtype)
    step = sums / (squares[rows].to(sums.dtype).sqrt() + eps)[:, None]
    put_rows_(table, rows, table[rows].to(sums.dtype) - rate * step, generator)


def adamw_(
    table: Tensor,
    first: Tensor,
    second: Tensor,
    ids: Tensor,
    grads: Tensor,
    *,
    step: int,
    rate: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    generator: torch.Generator | None = None,
) -> None:
    """Move the rows `ids` of `table` by AdamW; moments (V, D) float32 of other rows stay, and so do the rows.

    `step` counts from 1 and corrects the bias of all rows alike, as torch's SparseAdam does.
    """
    rows, sums = distinct_sums(ids, grads)
    first[rows] = first[rows].lerp(sums.to(first.dtype), 1 - betas[0])
    second[rows] = second[rows].lerp(sums.square().to(second.dtype), 1 - betas[1])
    mean = first[rows].to(sums.dtype) / (1 - betas[0] ** step)
    spread = (second[rows].to(sums.dtype) / (1 - betas[1] ** step)).sqrt() + eps
    put_rows_(table, rows, table[rows].to(sums.dtype) * (1 - rate * decay) - rate * mean / spread, generator)


def put_rows_(table: Tensor, rows: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
    """Write `values` to `rows` of `table`; a bfloat16 table with a `generator` rounds stochastically."""
    if generator is not None and table.dtype == torch.bfloat16:
        values = round_stochastically(values.float(), generator)
    table[rows] = values.to(table.dtype)


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 `values` rounded to a bfloat16 neighbour, up as often as they are near it; still float32.

    Plain rounding loses updates below 2^-9 of a weight, so a table trained in bfloat16 would stop moving.
    """
    noise = torch.randint(1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    rounded = ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)
