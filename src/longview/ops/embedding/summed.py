# mypy: disable-error-code="index, no-untyped-call"
"""The input of a sequence model in one pass: rows of several tables, added, with dropout.

Operation by operation each of lookup, scaling, addition, dropout and conversion reads and writes a row of the width of
the model for every event; here the tables are read once and the result is written once, and backward likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.embedding.lookup import sparse_gradient
from longview.ops.embedding.path import why_not
from longview.ops.kernels import on_device_of, padded_dim

MAX_TERMS = 3


class Term(NamedTuple):
    """`factor` times the rows of `table` (V, D) at `ids` (T,) int64; `sparse`: its gradient is a sparse tensor."""

    table: Tensor
    ids: Tensor
    factor: float = 1.0
    sparse: bool = False


def why_not_summed(terms: Sequence[Term]) -> str | None:
    """Return why `summed_lookup` cannot serve `terms`, in a sentence, or None where it can."""
    if len(terms) > MAX_TERMS:
        return f"the kernel adds up to {MAX_TERMS} tables, and there are {len(terms)}"
    if terms[0].table.shape[1] % 8:
        return f"the dropout counter serves 8 columns, and the tables have {terms[0].table.shape[1]}"
    return next((reason for term in terms if (reason := why_not(term.table)) is not None), None)


def summed_lookup(terms: Sequence[Term], *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return dropout of the sum of `terms`, (T, D) of `dtype`, summed in float32; differentiable in the tables.

    The seed of the dropout comes from torch's default generator of the device. Gradients are summed by id in one order.

    Raises:
        InputError: no term, tables or ids that do not fit together, or a device without the kernels.
    """
    if not terms:
        raise InputError("a sum of looked-up rows needs at least one table")
    width, count = terms[0].table.shape[1], terms[0].ids.numel()
    for term in terms:
        if term.table.dim() != 2 or term.table.shape[1] != width or term.ids.shape != (count,):
            raise InputError(
                f"tables (V, {width}) with ids ({count},) expected, got {tuple(term.table.shape)} with ids "
                f"{tuple(term.ids.shape)}"
            )
    reason = why_not_summed(terms)
    if reason is not None:
        raise InputError(f"the fused sum of lookups cannot run here: {reason}")
    from longview.ops.dropout.counter import draw_seed

    device = terms[0].table.device
    drop = _Dropout(dropout, draw_seed(device) if dropout else None)
    parts = tuple(_Part(term.ids.contiguous(), term.factor, term.sparse) for term in terms)
    found: Tensor = SummedLookup.apply(parts, drop, dtype, *(term.table for term in terms))
    return found


class _Part(NamedTuple):
    """A term without its table."""

    ids: Tensor
    factor: float
    sparse: bool


class _Dropout(NamedTuple):
    rate: float
    seed: Tensor | None

    def arguments(self) -> dict[str, Any]:
        from longview.ops.dropout.counter import kept_scale, level

        return {"seed": self.seed, "level": level(self.rate), "kept_by": kept_scale(self.rate)}


class SummedLookup(torch.autograd.Function):
    """`apply(parts, dropout, dtype, *tables)` → (T, D)."""

    @staticmethod
    def forward(ctx: Any, parts: tuple[_Part, ...], drop: _Dropout, dtype: torch.dtype, *tables: Tensor) -> Tensor:
        """Return the summed rows (T, D) of all `parts`, with dropout, in `dtype`."""
        from longview.ops.embedding import triton_summed as kernels

        count, width = parts[0].ids.numel(), tables[0].shape[1]
        out = torch.empty(count, width, dtype=dtype, device=tables[0].device)
        read = [x for part, table in zip(parts, tables, strict=True) for x in (table.contiguous(), part.ids)]
        read += read[:2] * (MAX_TERMS - len(parts))
        factors = [part.factor for part in parts] + [0.0] * (MAX_TERMS - len(parts))
        names = dict(zip(("first_factor", "second_factor", "third_factor"), factors, strict=True))
        padded = padded_dim(width)
        rows = kernels.rows_at_once(padded)
        if count:
            with on_device_of(out):
                kernels.sum_rows[(-(-count // rows),)](
                    out, *read, T=count, **names, **drop.arguments(), TERMS=len(parts), DROP=drop.rate > 0, R=rows,
                    WIDTH=width, PADDED=padded, num_warps=kernels.WARPS,
                )  # fmt: skip
        ctx.settings = parts, drop, [(table.dtype, table.shape) for table in tables]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tables, each of its own kind; what is no tensor has none."""
        from longview.ops.embedding import fused

        parts, drop, kinds = ctx.settings
        rows = _scaled(grads[0].contiguous(), parts[0].factor, drop)
        found: list[Tensor | None] = []
        for at, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
            if not ctx.needs_input_grad[3 + at]:
                found.append(None)
                continue
            relative = part.factor / parts[0].factor
            if part.sparse:
                found.append(sparse_gradient(part.ids, rows * relative if relative != 1 else rows, *kind))
                continue
            grad = fused.sum_by_id(part.ids, rows, *kind)
            found.append(grad.mul_(relative) if relative != 1 else grad)
        return (None, None, None, *found)


def _scaled(d_out: Tensor, factor: float, drop: _Dropout) -> Tensor:
    """Return the gradient of the first term's rows (T, D), dtype of `d_out`."""
    from longview.ops.embedding import triton_summed as kernels

    count, width = d_out.shape
    if not count or (factor == 1 and not drop.rate):
        return d_out
    rows, padded = torch.empty_like(d_out), padded_dim(width)
    at_once = kernels.rows_at_once(padded)
    with on_device_of(d_out):
        kernels.scale_rows[(-(-count // at_once),)](
            d_out, rows, T=count, factor=factor, **drop.arguments(), DROP=drop.rate > 0, R=at_once, WIDTH=width,
            PADDED=padded, num_warps=kernels.WARPS,
        )  # fmt: skip
    return rows
