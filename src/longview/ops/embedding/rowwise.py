"""Optimisers of a table that move only the rows a batch touched: row-wise AdaGrad and AdamW of touched rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.embedding import reference
from longview.ops.embedding.path import Path, path_for

if TYPE_CHECKING:
    from longview.ops.embedding.fused import Moment


class RowwiseOptimiser(ABC):
    """Common part: a table (V, D), and `step(ids, grads)`, which sums repeated ids before it moves their rows.

    Both optimisers differ from their dense namesakes: a row that no lookup touched keeps its weights, its moments and
    its size (no decay), so the cost of a step depends on the batch and not on the table. Repeated runs give the same
    bits (on CUDA with the kernels; torch's own sums there have no fixed order).

    Args:
        table: (V, D) contiguous; float32, or bfloat16, which is rounded stochastically so that updates smaller than
            its last digit still move it on average.
        rate: may be changed between steps, through the attribute `rate`; a scalar tensor on the table's device, too.
        seed: of the rounding.
        path: `torch` or `triton`; None = the device's own.

    Raises:
        InputError: a table that is not a contiguous float matrix, ids and gradients that do not fit it.
    """

    def __init__(self, table: Tensor, *, rate: float | Tensor, seed: int = 0, path: Path | None = None) -> None:
        if table.dim() != 2 or not table.is_floating_point() or not table.is_contiguous():
            raise InputError(f"a contiguous floating point table (V, D) expected, got {tuple(table.shape)}")
        self.table, self.rate, self.seed = table, rate, seed
        self.path = path_for(table, path)
        # On the device of the kernels: a captured step counts by itself.
        self.steps = torch.zeros((), dtype=torch.int64, device=table.device if self.path == "triton" else "cpu")
        self._state: dict[str, Tensor] = {}

    def step(self, ids: Tensor, grads: Tensor) -> None:
        """Move the rows `ids` (n,) int64 by their gradients (n, D); ids may repeat and may be none."""
        if ids.dim() != 1 or ids.dtype != torch.int64 or grads.shape != (len(ids), self.table.shape[1]):
            raise InputError(
                f"ids (n,) int64 and grads (n, {self.table.shape[1]}) expected, got {tuple(ids.shape)} {ids.dtype} "
                f"and {tuple(grads.shape)}"
            )
        self.steps += 1
        with torch.no_grad():
            self._update(ids, grads)

    def step_gradient(self) -> None:
        """Step with the sparse gradient that a backward pass left in `table.grad`, and clear it."""
        self.step(*self._gradient())
        self.table.grad = None

    def squared_norm(self) -> Tensor:
        """Return the squared norm of that gradient, its repeated rows summed: a scalar that stays on the device."""
        ids, rows = self._gradient()
        if self.path == "torch":
            return reference.squared_norm(ids, rows, len(self.table))
        from longview.ops.embedding import fused

        return fused.squared_norm(ids, rows, len(self.table))

    def scale_gradient(self, factor: Tensor) -> None:
        """Multiply that gradient by the scalar `factor`."""
        self._gradient()[1].mul_(factor)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        grad = self.table.grad
        if grad is None or not grad.is_sparse:
            raise InputError("table.grad must be sparse: look rows up with embedding_lookup(..., sparse=True)")
        return grad._indices()[0], grad._values()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep, beside the table."""
        return {"steps": self.steps, **self._state}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    @abstractmethod
    def _update(self, ids: Tensor, grads: Tensor) -> None:
        """Move the rows; `steps` counts this one."""

    def _moment(self, *betas: float) -> Moment:
        """Return what the kernels need to know of this step; nothing waits for the device."""
        from longview.ops.embedding import fused

        count, device = self.steps.double(), self.table.device
        rate = self.rate if isinstance(self.rate, Tensor) else torch.full((), self.rate, device=device)
        corrections = torch.stack([1 - torch.pow(beta, count) for beta in betas])
        return fused.Moment(torch.cat([rate.float()[None], corrections.float()]), self.steps[None])

    def _generator(self) -> torch.Generator:
        """Return the stream of the next step's rounding, which depends on the seed and the step alone."""
        seed = (self.seed * 1_000_003 + int(self.steps)) % (1 << 63)
        return torch.Generator(self.table.device).manual_seed(seed)


class RowwiseAdagrad(RowwiseOptimiser):
    """AdaGrad with one accumulator a row, the sum of the mean squares of its gradients: 4 bytes of state a row.

    Example:
        >>> table = torch.ones(3, 2)
        >>> RowwiseAdagrad(table, rate=0.5).step(torch.tensor([1, 1]), torch.ones(2, 2))
        >>> table
        tensor([[1.0000, 1.0000],
                [0.5000, 0.5000],
                [1.0000, 1.0000]])
    """

    def __init__(
        self, table: Tensor, *, rate: float | Tensor = 0.01, eps: float = 1e-8, seed: int = 0, path: Path | None = None
    ) -> None:
        super().__init__(table, rate=rate, seed=seed, path=path)
        self.eps = eps
        self._state = {"squares": torch.zeros(len(table), device=table.device)}

    def _update(self, ids: Tensor, grads: Tensor) -> None:
        squares = self._state["squares"]
        if self.path == "torch":
            reference.adagrad_(
                self.table, squares, ids, grads, rate=self.rate, eps=self.eps, generator=self._generator()
            )
            return
        from longview.ops.embedding import fused

        moment = self._moment(0.0, 0.0)
        fused.adagrad_(self.table, squares, ids, grads, moment, eps=self.eps, seed=self.seed)


class RowwiseAdamW(RowwiseOptimiser):
    """AdamW (decay 0: Adam) of the touched rows; moments (V, D) float32, bias corrected by the number of steps.

    With `weight_decay` a touched row shrinks by rate * weight_decay as in AdamW, and an untouched one does not.
    """

    def __init__(
        self,
        table: Tensor,
        *,
        rate: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
        path: Path | None = None,
    ) -> None:
        super().__init__(table, rate=rate, seed=seed, path=path)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self._state = {
            name: torch.zeros(table.shape, device=table.device, dtype=torch.float32) for name in ("first", "second")
        }

    def _update(self, ids: Tensor, grads: Tensor) -> None:
        first, second = self._state["first"], self._state["second"]
        settings: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "decay": self.weight_decay}
        if self.path == "torch":
            step, rate = int(self.steps), self.rate
            reference.adamw_(
                self.table, first, second, ids, grads, step=step, rate=rate, generator=self._generator(), **settings
            )
            return
        from longview.ops.embedding import fused

        fused.adamw_(self.table, (first, second), ids, grads, self._moment(*self.betas), seed=self.seed, **settings)
