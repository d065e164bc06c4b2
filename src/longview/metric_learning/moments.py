"""First and second moments of a batch of embeddings, and how far they may be from those of the population."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the ranks of a job
ROWS = 1024  # anchors whose classes are compared at a time: class sums of any batch need little memory


class BatchMoments(NamedTuple):
    """Moments of one batch, per dimension.

    values: (2, d), mean and biased (divided by n) standard deviation. noise: (2, d), the variance of the mean and of
    the *variance* as estimates of the population's, infinite for a batch of one class; None where nobody asked.
    """

    values: Tensor
    noise: Tensor | None = None


def batch_moments(
    embeddings: Tensor, labels: Tensor | None = None, *, reduce: Reduce | None = None, floor: float = 0.0
) -> BatchMoments:
    """Return the moments of `embeddings` (b, d), in their dtype.

    With `labels` (b,) also the noise. A sampler draws P classes and K samples of each, so a batch is P draws, not
    P·K: its mean has the variance σ_between²/P + σ_within²/(P·K), and that is what the spread of the class means
    says: their unbiased variance over P. The same for the contributions of the classes to the variance.

    Args:
        reduce: sums over the ranks of a job; the moments are then those of all ranks' rows, and a class counts
            once on every rank that has it.
        floor: the least standard deviation, for dimensions that have collapsed.

    Example:
        >>> batch_moments(torch.tensor([[0.0, 2.0], [4.0, 2.0]])).values.tolist()
        [[2.0, 2.0], [2.0, 0.0]]
    """
    total: Reduce = reduce if reduce is not None else lambda tensor: tensor
    n = float(len(embeddings)) if reduce is None else total(embeddings.new_tensor(float(len(embeddings))))
    mean = total(embeddings.sum(0)) / n
    centred_BD = embeddings - mean
    squares_BD = centred_BD.square()
    variance = total(squares_BD.sum(0)) / n
    values = torch.stack([mean, variance.sqrt().clamp_min(floor)])
    if labels is None:
        return BatchMoments(values)
    return BatchMoments(values, _noise(torch.cat([centred_BD, squares_BD - variance], 1), labels, n, total))


def _noise(centred_BE: Tensor, labels: Tensor, n: Tensor | float, total: Reduce) -> Tensor:
    """Return (2, d), the variance of means of rows that come in classes: Σ_c (sum of class c)² / n² · P / (P − 1).

    `centred_BE` has mean zero over all ranks. A class's sum is met once a sample of it, hence the weights.
    """
    squares = centred_BE.new_zeros(centred_BE.shape[1])
    classes = centred_BE.new_zeros(1)
    for first in range(0, len(labels), ROWS):
        same_AB = (labels[first : first + ROWS, None] == labels[None, :]).to(centred_BE.dtype)
        weight_A = same_AB.sum(1).reciprocal()
        squares = squares + weight_A @ (same_AB @ centred_BE).square()
        classes = classes + weight_A.sum()
    both = total(torch.cat([squares, classes]))
    squares, classes = both[:-1], both[-1].round()  # 1/3 + 1/3 + 1/3 is one class
    variance = squares * (classes / ((classes - 1) * n * n))
    return torch.where(classes > 1, variance, torch.inf).view(2, -1)
