"""Batch normalisation over the batch of all processes, so that several train as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longview.ops.collectives import ranks, sum_over_ranks


class _Normalise(torch.autograd.Function):
    """(B, C, …) less the mean and over the deviation of all ranks' rows; also their mean, variance and number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x normalised, mean (C,), variance (C,) and number (1,) of all ranks' rows, the last three float64."""
        over = [0, *range(2, x.dim())]
        number = x.numel() / x.shape[1]
        # In float64, where a mean far from 0 costs the variance no digits.
        wide = x.double()
        sums = torch.cat([wide.sum(over), wide.square().sum(over), wide.new_tensor([number])])
        total, squares, count = torch.split(sum_over_ranks(sums), [x.shape[1], x.shape[1], 1])
        mean, variance = total / count, (squares / count - (total / count).square()).clamp_min(0)
        inverse = (variance + eps).rsqrt()
        shape = [1, -1, *(1 for _ in over[1:])]
        normal = ((wide - mean.view(shape)) * inverse.view(shape)).to(x.dtype)
        ctx.save_for_backward(normal, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normal, inverse, count = ctx.saved_tensors
        gradient, over = gradients[0], [0, *range(2, normal.dim())]
        shape = [1, -1, *(1 for _ in over[1:])]
        sums = torch.cat([gradient.double().sum(over), (gradient.double() * normal).sum(over)])
        mean, along = (part.view(shape) for part in (sum_over_ranks(sums) / count).chunk(2))
        return ((gradient - mean - normal * along) * inverse.view(shape)).to(gradient.dtype), None


class AllRanksBatchNorm(nn.SyncBatchNorm):
    """torch's on a GPU; the same on a CPU, where torch has none."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, …) normalised by the mean and variance of all ranks' rows, in evaluation by the running ones.

        In training every rank must call it, with rows of its own, and run backward: both passes sum over the ranks.
        """
        if input.device.type != "cpu" or not self.training or ranks()[0] == 1:
            return super().forward(input)
        normal: Tensor
        normal, mean, variance, count = _Normalise.apply(input, self.eps)  # type: ignore[no-untyped-call]
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased = variance * (count / (count - 1).clamp_min(1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        if not self.affine:
            return normal
        shape = [1, -1, *(1 for _ in range(2, input.dim()))]
        scaled: Tensor = normal * self.weight.view(shape) + self.bias.view(shape)
        return scaled


def over_all_ranks(model: nn.Module) -> None:
    """Let the batch norms inside `model` see the batch of all ranks; parameters and names stay. On one rank, nothing.

    Source: `torch.nn.SyncBatchNorm`.
    """
    if ranks()[0] == 1:
        return
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = AllRanksBatchNorm
