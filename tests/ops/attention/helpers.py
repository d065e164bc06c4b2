"""Random batches, and attention with its gradients as one tuple to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from longview.ops.attention import MaskSpec, RelativeBias, semi_local_attention


@dataclass(frozen=True)
class Case:
    """A jagged batch of N(0,1) inputs: `lengths` are (context, history, targets) of each sequence."""

    lengths: Sequence[tuple[int, int, int]]
    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    position: Tensor | None = None
    time: Tensor | None = None
    timestamps: Tensor | None = None

    @property
    def offsets(self) -> Tensor:
        return torch.tensor([0, *(sum(lengths) for lengths in self.lengths)]).cumsum(0)

    def rows(self, sequence: int) -> slice:
        return slice(int(self.offsets[sequence]), int(self.offsets[sequence + 1]))

    def alone(self, sequence: int) -> Case:
        """Return the case of one of the sequences."""
        rows = self.rows(sequence)
        stamps = None if self.timestamps is None else self.timestamps[rows]
        parts = {name: getattr(self, name)[rows] for name in ("q", "k", "v", "d_out")}
        return replace(self, lengths=[self.lengths[sequence]], timestamps=stamps, **parts)

    def to(self, dtype: torch.dtype) -> Case:
        tensors = {name: getattr(self, name) for name in ("q", "k", "v", "d_out", "position", "time")}
        return replace(self, **{name: x if x is None else x.to(dtype) for name, x in tensors.items()})

    def run(self, mask: MaskSpec, backend: str | None = None, **settings: Any) -> tuple[Tensor, ...]:
        """Return out, dQ, dK, dV and the gradients of the bias tables there are."""
        leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]
        tables = {name: x.detach().requires_grad_() for name, x in self._tables().items()}
        bias = RelativeBias(**tables, timestamps=self.timestamps) if tables else None
        c, _, t = torch.tensor(self.lengths, dtype=torch.int64).view(-1, 3).unbind(1)
        out = semi_local_attention(
            *leaves,
            self.offsets,
            mask,
            **{"alpha": 0.7, "scale_length": 5.0, **settings},
            context_lengths=c,
            target_lengths=t,
            bias=bias,
            backend=backend,  # type: ignore[arg-type]
        )
        inputs = [*leaves, *tables.values()]
        gradients = torch.autograd.grad(out, inputs, self.d_out, allow_unused=True)  # unused where there is no token
        return out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))

    def _tables(self) -> dict[str, Tensor]:
        return {name: x for name, x in (("position", self.position), ("time", self.time)) if x is not None}


def case(
    lengths: Sequence[int | tuple[int, int, int]],
    heads: int = 2,
    d_qk: int = 8,
    d_v: int = 8,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Return a random case; an integer length is history alone."""
    source = torch.Generator().manual_seed(seed)
    triples = [(0, n, 0) if isinstance(n, int) else n for n in lengths]
    total = sum(map(sum, triples))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    q, k = normal(total, heads, d_qk), normal(total, heads, d_qk)
    v, d_out = normal(total, heads, d_v), normal(total, heads, d_v)
    if not bias:
        return Case(triples, q, k, v, d_out)
    stamps = torch.randint(0, 10**6, (total,), generator=source)
    return Case(triples, q, k, v, d_out, normal(heads, 11), normal(heads, 20), stamps)


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Return ||found - expected|| / ||expected|| of each pair, 0 where both are zero."""
    errors = []
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        scale = float(b.double().norm())
        errors.append(float((a.double() - b.double()).norm()) / scale if scale else float(a.double().norm()))
    return errors
