"""One optimisation step, and everything that must be saved for the next one to be the same."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.devices import load_random_tensors, random_tensors
from longview.training.distributed import sum_gradients
from longview.training.goals import Goal, make_goal
from longview.training.graph import CapturedSteps, choose_graphs
from longview.training.optimiser import (
    WeightAverage,
    build_optimiser,
    build_table_optimiser,
    clip_gradients,
    load_optimiser_tensors,
    optimiser_tensors,
    rate_at,
)
from longview.training.precision import autocast, choose_precision, fp8_note, matmul_precision
from longview.training.tensors import all_finite, under


class Trainer:
    """A model with its objective, optimiser, schedule and weight average on one device.

    Args:
        config: the run.
        data: what the goal of `config` is made for, where `goal` is not given.
        device: where the model lives.
        steps_per_epoch: what the schedule counts in.
        goal: builds the model and its loss.

    `precision_note` says why bf16 is off where it was wanted, `graphs_note` the same of CUDA graphs, `fp8_note`
    of 8-bit products. `rate` is the learning rate of the last step.

    Raises:
        InputError: 8-bit products by name on a GPU without them.
    """

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        *,
        device: torch.device,
        steps_per_epoch: int,
        goal: Goal | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.fp8_note = fp8_note(config.model, device)
        goal = goal or make_goal(config, data)
        self.model: Retriever = goal.build().to(device)
        self.objective = goal.objective(device)
        self.optimiser = build_optimiser(self.model, config.optimiser)
        self.table_optimiser = build_table_optimiser(self.model, config.optimiser)
        decay = config.optimiser.average_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self.dtype, self.precision_note = choose_precision(config.loop.precision, device)
        self.planned_steps = config.loop.epochs * steps_per_epoch
        self.rate = 0.0
        graphs, self.graphs_note = choose_graphs(config, device)
        self.captured = self._capturable() if graphs else None

    @property
    def evaluated(self) -> Retriever:
        """The model that is evaluated and saved: the weight average where there is one."""
        return self.model if self.average is None else self.average.model

    def sound(self) -> bool:
        """Return whether all weights, and their average, are finite."""
        return all_finite(x for model in {self.model, self.evaluated} for x in model.state_dict().values())

    def step(self, batch: JaggedBatch, number: int) -> tuple[Tensor, Tensor]:
        """Train on `batch`, step `number` of the run (from 0); return its loss and gradient norm, unread."""
        self.model.train()
        self.rate = rate_at(number, self.planned_steps, self.config.optimiser)
        share = 0.0 if self.average is None else self.average.share(number)
        if self.captured is not None:
            return self.captured.step(batch, self.rate, share)
        return self._step(batch.to(self.device), self.rate, share)

    def _step(self, batch: JaggedBatch, rate: float | Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
        """Do a step on a batch on the device; `rate` and `share` (of the weight average) are scalars."""
        with matmul_precision(self.device):
            loss = sum_gradients(self.model, *self._backward(batch))
        norm = clip_gradients(self.model, self.config.optimiser.clip_norm, self.table_optimiser)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.table_optimiser is not None:
            self.table_optimiser.rate = rate
            self.table_optimiser.step_gradient()
        if self.average is not None:
            self.average.move(share)
        return loss, norm

    def _backward(self, batch: JaggedBatch) -> tuple[Tensor, int]:
        """Set the gradients of `batch`; return its loss and how many positions that is a mean over."""
        if not batch.num_sequences:  # this process's share of a last batch smaller than the number of processes
            return torch.zeros((), device=self.device), 0
        with autocast(self.dtype, self.device):
            loss = self.objective.loss(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), self.objective.terms

    def _capturable(self) -> CapturedSteps:
        """Return what runs `_step` as CUDA graphs. They know tensors by their place: loaded state needs new ones."""
        for group in self.optimiser.param_groups:
            group["capturable"] = True
        return CapturedSteps(
            self._step,
            device=self.device,
            max_length=self.config.model.max_length,
            candidates=self.config.candidates_at_most(),
            sizes=self.model.sizes,
            generators=self.objective.generators(),
            undo=self._drop_gradients,
        )

    def _drop_gradients(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.table_optimiser is not None:
            self.table_optimiser.table.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor a checkpoint must keep, by name: weights, moments, average, random states."""
        saved = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            saved |= {f"average.{name}": value for name, value in self.average.model.state_dict().items()}
        saved |= optimiser_tensors(self.optimiser)
        if self.table_optimiser is not None:
            saved |= {f"table.{name}": value for name, value in self.table_optimiser.tensors().items()}
        saved |= {f"objective.{name}": value for name, value in self.objective.tensors().items()}
        return saved | random_tensors(self.device)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`: what follows is bit for bit what would have followed."""
        self.model.load_state_dict(under(tensors, "model"))
        if self.average is not None:
            self.average.model.load_state_dict(under(tensors, "average"))
        load_optimiser_tensors(self.optimiser, tensors)
        if self.captured is not None:
            self.captured = self._capturable()
        if self.table_optimiser is not None:
            self.table_optimiser.load_tensors(under(tensors, "table"))
        self.objective.load_tensors(under(tensors, "objective"))
        load_random_tensors(tensors, self.device)
