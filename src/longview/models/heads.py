"""The multi-task head: a shared trunk, and a tower for each task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.data.labels import Task
from longview.ops.dropout import dropout
from longview.ops.embedding import embedding_lookup

BIAS_SCALE = 10.0  # an Adam step moves a bias by so many learning rates: rare items have few steps


class HeadConfig(Config):
    """Sizes of the multi-task head."""

    trunk: tuple[int, ...] = Field(default=(64,), description="widths of the layers that all tasks share")
    tower: tuple[int, ...] = Field(default=(32,), description="widths of the layers of each task alone")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    item_bias: bool = Field(default=True, description="a number of each item and task that is added, zero at first")


class MultiTaskHead(nn.Module):
    """Candidate vectors to one number a task: a logit, or an amount in deviations from its mean in training.

    What all users like is learned in a bias of the item, so that the rest can be about this user. The last biases start
    where the model predicts the rate, or the mean, of training for everything.
    """

    def __init__(self, config: HeadConfig, width: int, tasks: Sequence[Task], num_items: int) -> None:
        super().__init__()
        self.tasks, self.dropout = tuple(tasks), config.dropout
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.trunk, shared = _layers(width, config.trunk)
        self.towers = nn.ModuleList()
        for task in self.tasks:
            layers, last = _layers(shared, config.tower)
            out = nn.Linear(last, 1)
            nn.init.zeros_(out.weight)
            nn.init.constant_(out.bias, _logit(task.mean) if task.kind == "binary" else 0.0)
            self.towers.append(layers.append(out))

        self.item_bias = nn.Embedding(num_items, len(self.tasks)) if config.item_bias else None
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def forward(self, x_ND: Tensor, items: Tensor) -> Tensor:
        """Return (n, tasks) float32 logits and standardised amounts of the candidates `items` (n,)."""
        x = self._run(self.trunk, self.norm(x_ND))
        columns = []
        for tower in self.towers:
            assert isinstance(tower, nn.ModuleList)
            columns.append(tower[-1](self._run(tower[:-1], x)))
        outputs = torch.cat(columns, dim=1).float()
        if self.item_bias is None:
            return outputs
        table = self.item_bias.weight
        bias = embedding_lookup(table, items) if table.is_cuda else F.embedding(items, table)
        return outputs + BIAS_SCALE * bias.float()

    def predictions(self, outputs_NT: Tensor) -> Tensor:
        """Return (n, tasks) float64: probabilities, and amounts in the unit of the data."""
        columns = [
            outputs_NT[:, number].double().sigmoid()
            if task.kind == "binary"
            else outputs_NT[:, number].double() * task.deviation + task.mean
            for number, task in enumerate(self.tasks)
        ]
        return torch.stack(columns, dim=1)

    def _run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = dropout(F.silu(layer(x)), self.dropout, self.training)
        return x


def task_losses(outputs_NT: Tensor, labels_NT: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Return the mean loss of each task over the candidates whose label is known, (tasks,); 0 where none is.

    Binary cross-entropy of logits; mean absolute error of amounts in deviations, so that tasks weigh alike.
    """
    losses = []
    for number, task in enumerate(tasks):
        label, output = labels_NT[:, number], outputs_NT[:, number]
        known = ~label.isnan()
        filled = torch.where(known, label, 0.0)
        if task.kind == "binary":
            each = F.binary_cross_entropy_with_logits(output, filled, reduction="none")
        else:
            each = (output - (filled - task.mean) / (task.deviation or 1.0)).abs()
        losses.append(torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1))
    return torch.stack(losses)


def _layers(width: int, sizes: Sequence[int]) -> tuple[nn.ModuleList, int]:
    layers = nn.ModuleList()
    for size in sizes:
        layers.append(nn.Linear(width, size))
        width = size
    return layers, width


def _logit(rate: float) -> float:
    p = min(max(rate, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))
