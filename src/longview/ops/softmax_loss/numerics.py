"""What both fast paths share: dtypes, block sizes, and exponentials that cannot overflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CPU_BLOCK = 1 << 21  # logits a block: 8 MB of float32, which stays in the last-level cache between passes
DEVICE_BLOCK = 1 << 27  # 512 MB of float32: enough work a launch to keep an accelerator busy
SAFE_EXPONENT = 40.0  # exp(±40) and sums of 1e9 of it are far from the ends of float32
LOG2_E = math.log2(math.e)


def rows_per_block(columns: int, device: torch.device, block: int | None) -> int:
    """Return how many rows of `columns` logits one block holds."""
    if block is not None:
        return block
    return max(64, (CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK) // max(1, columns))


def matmul_dtype(queries: Tensor, items: Tensor) -> torch.dtype:
    """Return the dtype matrix products are done in: autocast's where it is on, else the wider of the two."""
    device = queries.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (queries.dtype, items.dtype):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(queries.dtype, items.dtype)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a @ b (2-d or batched) in the accumulation dtype, whatever the dtype of `a` and `b`.

    Half-precision products on CUDA keep their float32 accumulator; elsewhere the rounded product is widened.
    """
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    wide = accumulation_dtype(a.dtype)
    if a.dtype == wide:
        return multiply(a, b, out=out)
    if a.is_cuda:
        return multiply(a, b, out_dtype=wide)
    return multiply(a, b).to(wide)


def largest_logit(queries: Tensor, items: Tensor, extra: float = 0.0) -> float:
    """Return a bound on |queries @ items.T| (Cauchy-Schwarz) plus `extra`; NaN when an input is NaN."""
    norms = torch.linalg.vector_norm(queries, dim=-1).amax() * torch.linalg.vector_norm(items, dim=-1).amax()
    return float(norms) + extra


def exponentiate_(logits: Tensor, bounded: bool, floor: Tensor | None = None) -> tuple[Tensor | float, Tensor]:
    """Turn `logits` into exp(logits − shift) in place; return (shift, row sums), both (..., 1).

    `bounded` logits need no shift, which saves two passes. `floor` (..., 1) is a further logit of each row
    the shift must also cover.
    """
    if bounded:
        return 0.0, _exp_(logits).sum(-1, keepdim=True)
    shift = logits.amax(-1, keepdim=True)
    if floor is not None:
        shift = torch.maximum(shift, floor)
    return shift, _exp_(logits.sub_(shift)).sum(-1, keepdim=True)


def _exp_(x: Tensor) -> Tensor:
    """Return exp(x), in place. Libraries for CPUs raise 2 so much faster than e that it pays for a pass.

    The factor is not put into the queries: logits of hundreds would lose digits before the shift is taken off.
    """
    return x.mul_(LOG2_E).exp2_() if x.device.type == "cpu" else x.exp_()


def mean_of(losses_n: Tensor, counted_n: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the mean of the losses of the rows that count (None: all of them), a scalar; 0 where none counts.

    Also return what gradients of the mean over all rows are to be multiplied by, a scalar, or None for nothing.
    """
    if counted_n is None:
        return losses_n.mean(), None
    number = counted_n.sum().clamp(min=1)
    return torch.where(counted_n, losses_n, 0).sum() / number, len(losses_n) / number


def chained(grad_loss: Tensor, factor: Tensor | None) -> Tensor:
    """Return the gradient of a loss times the second result of `mean_of`, a scalar."""
    return grad_loss if factor is None else grad_loss * factor


def scaled(saved: Tensor, factor: Tensor) -> Tensor:
    """Return `saved` (n, d) times a scalar that has more digits, rounded once to the dtype of `saved`."""
    return torch.mul(saved, factor.reshape(1, 1), out=torch.empty_like(saved))


def refuse_second_derivative() -> None:
    """Raise inside `backward` when a second derivative is being prepared."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the blocked softmax losses keep gradients, not logits, and have no second derivative: call backward "
            "without create_graph, or use longview.ops.softmax_loss.reference"
        )
