# mypy: disable-error-code="index, no-untyped-call"
"""The full softmax of wide vectors on a GPU: launches of `triton_blocks`, and products of the vendor's library.

The forward pass keeps a log-sum-exp a query and nothing else. The backward pass takes the catalogue in blocks: their
weights p - onehot are written in the dtype of the products, where both gradients read them. Bits repeat on a device:
the kernels' sums have one order, and so have the library's on one GPU with one version of it.

Shapes: n queries, V items, d width, T tiles of items, b items of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.ops.kernels import on_device_of
from longview.ops.softmax_loss import triton_blocks as kernels
from longview.ops.softmax_loss.numerics import LOG2_E, chained, matmul_dtype, mean_of, product, refuse_second_derivative
from longview.ops.softmax_loss.triton_tile import Tile

WEIGHTS = 1 << 27  # entries of a block: 256 MB of 2-byte weights, and tiles enough to fill the device several times
TOPS = 1 << 23  # tiles' largest logits and sums kept at a time: 32 MB each


class Setup(NamedTuple):
    """Tiles of the two products, and how many weights a block of items may have."""

    tiles: tuple[Tile, Tile] = kernels.TILES
    weights: int = WEIGHTS


class BlockedFullSoftmaxLoss(torch.autograd.Function):
    """`apply(queries, items, targets, temperature, label_smoothing, setup, counted)` → mean loss, a scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        temperature: float,
        label_smoothing: float,
        setup: Setup | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar, and keep its gradients, made on the way."""
        low = matmul_dtype(queries, items)
        query_nd, item_Vd, targets = queries.to(low).contiguous(), items.to(low).contiguous(), targets.contiguous()
        if setup is None:
            setup = Setup() if low.itemsize == 2 else Setup((kernels.WIDE_TILE, kernels.WIDE_TILE))
        problem = _Problem(query_nd, item_Vd, targets, 1 / temperature, label_smoothing, setup)
        mean_d = items.mean(0, dtype=torch.float32) if label_smoothing else None
        with on_device_of(queries):
            losses, logs = problem.losses(mean_d)
        ctx.save_for_backward(query_nd, item_Vd, targets, logs, mean_d)
        ctx.settings = 1 / temperature, label_smoothing, setup, queries.dtype, items.dtype
        loss, ctx.factor = mean_of(losses, counted)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        query_nd, item_Vd, targets, logs, mean_d = ctx.saved_tensors
        *settings, query_dtype, item_dtype = ctx.settings
        need_queries, need_items = ctx.needs_input_grad[:2]
        with on_device_of(query_nd), torch.autocast(query_nd.device.type, enabled=False):
            problem = _Problem(query_nd, item_Vd, targets, *settings)
            grad_nd = torch.zeros_like(query_nd, dtype=torch.float32) if need_queries else None
            grad_Vd = torch.empty_like(item_Vd, dtype=item_dtype) if need_items else None
            problem.gradients(logs, mean_d, chained(grads[0], ctx.factor).float(), grad_nd, grad_Vd)
        return None if grad_nd is None else grad_nd.to(query_dtype), grad_Vd, None, None, None, None, None


class _Problem:
    """Operands and settings of one loss."""

    def __init__(
        self, query_nd: Tensor, item_Vd: Tensor, targets: Tensor, scale: float, smoothing: float, setup: Setup
    ) -> None:
        self.query_nd, self.item_Vd, self.targets = query_nd, item_Vd, targets
        self.scale, self.smoothing, self.setup = scale, smoothing, setup
        self.n, width = query_nd.shape
        self.num_items = len(item_Vd)
        self.width = {"WIDTH": width, "DEPTH": min(kernels.DEPTH, max(16, 1 << (width - 1).bit_length()))}

    def losses(self, mean_d: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return losses and log2-sum-exps (n,) float32."""
        tile, factor = self.setup.tiles[0], self.scale * LOG2_E
        tiles = -(-self.num_items // tile.items)
        rows = min(self.n, max(1, TOPS // (tiles * tile.rows)) * tile.rows)
        losses, logs, tops, totals = (
            self.query_nd.new_empty(size, dtype=torch.float32) for size in (self.n, self.n, tiles * rows, tiles * rows)
        )
        for start in range(0, self.n, rows):
            query, target = self.query_nd[start : start + rows], self.targets[start : start + rows]
            n = len(query)
            kernels.block_tops[(-(-n // tile.rows) * tiles,)](
                query, self.item_Vd, tops, totals, n, self.num_items, factor,
                GROUP=kernels.GROUP, **tile.options(), **self.width,
            )  # fmt: skip
            kernels.block_losses[(-(-n // kernels.SMALL),)](
                query, self.item_Vd, target, tops if mean_d is None else mean_d, tops, totals,
                logs[start:], losses[start:],
                n, self.num_items, tiles, factor, self.smoothing,
                SMOOTH=mean_d is not None, ROWS=kernels.SMALL, AT_ONCE=kernels.AT_ONCE, **self.width,
            )  # fmt: skip
        return losses, logs

    def gradients(
        self, logs: Tensor, mean_d: Tensor | None, grad_loss: Tensor, grad_nd: Tensor | None, grad_Vd: Tensor | None
    ) -> None:
        """Add the queries' gradients to `grad_nd` (float32), and fill `grad_Vd`."""
        weight = grad_loss * (self.scale / self.n)
        constant_d = self.query_nd.sum(0, dtype=torch.float32) * (self.smoothing / self.num_items)
        size = self._block_size()
        buffer = self.query_nd.new_empty((self.n, size))
        for start in range(0, self.num_items, size):
            item_bd = self.item_Vd[start : start + size]
            weights_nb = buffer[:, : len(item_bd)]
            self._weights(weights_nb, item_bd, start, logs)
            if grad_nd is not None:
                grad_nd.add_(product(weights_nb, item_bd))
            if grad_Vd is not None:
                grad_bd = product(weights_nb.mT, self.query_nd)
                if self.smoothing:
                    grad_bd.sub_(constant_d)
                torch.mul(grad_bd, weight, out=grad_Vd[start : start + size])
        if grad_nd is not None:
            if mean_d is not None:
                grad_nd.sub_(mean_d * self.smoothing)
            grad_nd.mul_(weight)

    def _block_size(self) -> int:
        """Return how many items a block has: as many as the weights allow, in blocks of nearly equal size."""
        unit = max(64, self.setup.tiles[1].items)
        most = max(unit, self.setup.weights // self.n // unit * unit)
        blocks = -(-self.num_items // most)
        return -(-self.num_items // (blocks * unit)) * unit

    def _weights(self, weights_nb: Tensor, item_bd: Tensor, start: int, logs: Tensor) -> None:
        """Write p − (1 − smoothing) onehot of the items from `start` on."""
        tile, size = self.setup.tiles[1], len(item_bd)
        kernels.block_weights[(-(-self.n // tile.rows) * -(-size // tile.items),)](
            self.query_nd, item_bd, self.targets, logs, weights_nb,
            self.n, size, start, weights_nb.stride(0), self.scale * LOG2_E, 1 - self.smoothing,
            GROUP=kernels.GROUP, **tile.options(), **self.width,
        )  # fmt: skip
