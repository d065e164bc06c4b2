"""AdamW with its parameter groups, that of item rows, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from longview.errors import InputError
from longview.models.retriever import Retriever
from longview.ops.embedding import RowwiseAdamW
from longview.training.config import OptimiserConfig
from longview.training.tensors import under

Model = TypeVar("Model", bound=nn.Module)


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Return fused AdamW: weights decay, tables decay by their own rate, biases and norms do not.

    State and gradients are dense. At 10⁶ items of width 64 an update reads and writes 1.8 GB, 55 ms of one CPU core
    here; making and clipping the dense gradient costs more. Where that is too much, `config.tables` "rowwise" leaves
    the item table out, for `build_table_optimiser`.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    elsewhere = model.embedding.items.weight if config.tables == "rowwise" and isinstance(model, Retriever) else None
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter is elsewhere:
            continue
        if id(parameter) in tables:
            decay = _table_decay(config)
        elif parameter.dim() < 2 or name.endswith("bias"):
            decay = 0.0
        else:
            decay = config.weight_decay
        groups.setdefault(decay, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()],
        lr=config.rate,
        betas=config.betas,
        fused=True,
    )


def build_table_optimiser(model: Retriever, config: OptimiserConfig) -> RowwiseAdamW | None:
    """Return AdamW of the touched rows of the item table, whose gradient becomes sparse, or None where it is dense.

    A row that a step does not touch keeps its weights and its moments, which dense AdamW would decay.

    Raises:
        InputError: a model that normalises item vectors, which touches every row.
    """
    if config.tables == "dense":
        return None
    if model.config.normalise:
        raise InputError(
            "optimiser.tables rowwise moves only the item rows a step touched, and model.normalise reads them all: "
            "set model.normalise false, or optimiser.tables dense"
        )
    model.embedding.sparse_items = True
    table = model.embedding.items.weight
    return RowwiseAdamW(table, rate=config.rate, betas=config.betas, weight_decay=_table_decay(config))


def _table_decay(config: OptimiserConfig) -> float:
    return config.weight_decay if config.embedding_weight_decay is None else config.embedding_weight_decay


def rate_at(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then the decay to the end of the run.

    Example:
        >>> config = OptimiserConfig(rate=1.0, warmup_steps=10, decay="linear")
        >>> [rate_at(step, 110, config) for step in (0, 9, 10, 60, 110)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return config.rate * (step + 1) / config.warmup_steps
    if config.decay == "none":
        return config.rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    remaining = 1 - progress if config.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.rate * (config.min_rate_ratio + (1 - config.min_rate_ratio) * remaining)


class WeightAverage(Generic[Model]):
    """Exponential moving average of a model's weights, itself a model ready to evaluate.

    The decay grows from 0.1 at the first step to `decay`, so early averages do not remember the initialisation.
    With `statistics`, floating-point buffers, such as those of batch normalisation, are averaged as well.
    """

    def __init__(self, model: Model, decay: float, *, statistics: bool = False) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._average, self._weights = (_averaged(one, statistics) for one in (self.model, model))

    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        self.move(self.share(step))

    def share(self, step: int) -> float:
        """Return how much of the way to the weights after step `step` the average moves."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def move(self, share: float | Tensor) -> None:
        """Move towards the weights; a scalar tensor, on their device, may change between replays of a CUDA graph."""
        if isinstance(share, Tensor):
            way = torch._foreach_sub(self._weights, self._average)
            torch._foreach_mul_(way, share)
            torch._foreach_add_(self._average, way)
        else:
            torch._foreach_lerp_(self._average, self._weights, share)


def _averaged(model: nn.Module, statistics: bool) -> list[Tensor]:
    buffers = [b for b in model.buffers() if b.is_floating_point()] if statistics else []
    return [*(p.data for p in model.parameters()), *buffers]


def clip_gradients(model: nn.Module, norm: float | None, rowwise: RowwiseAdamW | None = None) -> Tensor:
    """Scale gradients down to a total `norm` where they exceed it; return their norm before, a scalar.

    The sparse gradient of the table of `rowwise` counts as the dense one it stands for.
    """
    table = None if rowwise is None else rowwise.table
    parameters = [p for p in model.parameters() if p is not table]
    total = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if rowwise is not None:
        total = (total.square() + rowwise.squared_norm()).sqrt()
    if norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, norm, total, foreach=True)
        if rowwise is not None:
            rowwise.scale_gradient((norm / (total + 1e-6)).clamp(max=1.0))  # torch's own factor
    return total


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of `optimiser` by name, for a checkpoint."""
    return {
        f"optimiser.{index}.{name}": value
        for index, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in under(tensors, "optimiser").items():
        index, _, moment = name.partition(".")
        state.setdefault(int(index), {})[moment] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
