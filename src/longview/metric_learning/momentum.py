"""A slow copy of an encoder, whose embeddings drift less: what moment matching is compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from longview.errors import InputError


class MomentumEncoder(nn.Module):
    """An exponential average of an encoder's parameters: θ_slow ← momentum · θ_slow + (1 - momentum) · θ.

    Costs a second forward pass a step. Buffers, such as those of batch normalisation, are copied. Give its output to
    the memory: `loss(z, labels, ids, keys=slow(images))`, and call `update` after each step of the optimiser.

    Source: He et al., arXiv 1911.05722.

    Example:
        >>> encoder = torch.nn.Linear(2, 2)
        >>> slow = MomentumEncoder(encoder, momentum=0.9)
        >>> slow.update(encoder)
        >>> slow(torch.ones(1, 2)).requires_grad
        False
    """

    def __init__(self, encoder: nn.Module, *, momentum: float = 0.999) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise InputError(f"momentum={momentum}: in [0, 1) expected")
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move towards `encoder`, which must have the modules of the one this was made of."""
        slow, fast = ([p.detach() for p in module.parameters()] for module in (self.encoder, encoder))
        torch._foreach_lerp_(slow, fast, 1 - self.momentum)
        for mine, theirs in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the slow encoder's embeddings, without a gradient."""
        embeddings: Tensor = self.encoder(*inputs, **named)
        return embeddings
