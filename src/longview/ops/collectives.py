"""Sums and rows over the ranks of a job; on one rank everything is what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from longview.errors import LongviewError


def ranks() -> tuple[int, int]:
    """Return the number of ranks and this one's; (1, 0) where no process group is running."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


@torch.no_grad()
def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of every rank's `tensor`, the same on all of them."""
    if ranks()[0] == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def gather_rows(tensor: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all ranks in order of rank, (Σ b, …); `sizes` says how many each has, which may be none."""
    if len(sizes) == 1:
        return tensor.detach()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def row_counts(number: int, device: torch.device) -> list[int]:
    """Return how many rows every rank has."""
    world, _ = ranks()
    if world == 1:
        return [number]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([number], dtype=torch.int64, device=device))
    return [int(count) for count in counts]


class _GatherWithGradient(torch.autograd.Function):
    """Rows of all ranks; the gradient of a row is the sum of what every rank makes of it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        sizes = row_counts(len(rows), rows.device)
        ctx.place = (sum(sizes[: ranks()[1]]), len(rows))  # type: ignore[attr-defined]
        return gather_rows(rows, sizes)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        first, number = ctx.place  # type: ignore[attr-defined]
        return sum_over_ranks(gradients[0].contiguous())[first : first + number]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in order of rank, differentiably.

    The backward pass is a collective: all ranks must run it.
    """
    if ranks()[0] == 1:
        return rows
    gathered: Tensor = _GatherWithGradient.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def same_on_all_ranks(tensors: Sequence[Tensor], what: str) -> None:
    """Compare SHA-256 sums of `tensors` over the ranks.

    Raises:
        LongviewError: they differ; on every rank.
    """
    world, _ = ranks()
    if world == 1:
        return
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    # Some buffers of a memory stay on the CPU, where NCCL cannot reach them.
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), tensors[0].device)
    mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).to(device)
    all_sums = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(all_sums, mine)
    other = [rank for rank, theirs in enumerate(all_sums) if not torch.equal(theirs, all_sums[0])]
    if other:
        raise LongviewError(
            f"{what}: rank {', '.join(map(str, other))} differs from rank 0; every rank must see the same seeds, "
            "the same number of steps and the same saved state"
        )
