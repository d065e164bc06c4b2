"""One step of metric learning, and everything that must be saved for the next one to be the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longview.data.images import ImageBatch
from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, DriftDiagnostics, MomentumEncoder
from longview.models.encoders import ImageEncoder, ParameterGroup, optimiser_groups, parameter_groups
from longview.training.batch_norm import over_all_ranks
from longview.training.devices import load_random_tensors, random_tensors
from longview.training.distributed import any_rank, sum_gradients
from longview.training.images.config import ImageRunConfig
from longview.training.images.graph import CapturedImageSteps, choose_image_graphs
from longview.training.images.losses import BatchLoss, ClassLoss, make_loss
from longview.training.images.views import ChosenImages, TrainingBatches, TrainingImages
from longview.training.optimiser import WeightAverage, load_optimiser_tensors, optimiser_tensors, rate_at
from longview.training.precision import autocast, choose_precision, matmul_precision
from longview.training.tensors import all_finite, under


class ImageTrainer:
    """An encoder with its loss, memory and optimiser on one device.

    Args:
        config: the run.
        encoder: what it trains.
        batches: what it trains on: classes, steps of an epoch, and images that stay on the device.
        device: where the encoder and the memory live.
        planned_steps: of the schedule of the learning rate, where it is not all epochs of the config.

    `precision_note` says why bf16 is off where it was wanted, `graphs_note` the same of CUDA graphs. `rate` is the
    learning rate of the last step. `diagnostics`, where set, watches the memory.
    """

    def __init__(
        self,
        config: ImageRunConfig,
        encoder: ImageEncoder,
        batches: TrainingBatches,
        *,
        device: torch.device,
        planned_steps: int | None = None,
    ) -> None:
        self.config, self.device, self.resident = config, device, batches.resident
        over_all_ranks(encoder)
        self.encoder = encoder.to(device)
        self.loss = make_loss(config, self.encoder.dimension, batches.classes).to(device)
        self.trained = nn.ModuleList([self.encoder, self.loss])
        momentum = None if config.memory is None else config.memory.momentum
        self.slow = None if momentum is None else MomentumEncoder(self.encoder, momentum=momentum)
        groups = parameter_groups(self.encoder, config.rates)
        settings = config.optimiser
        if isinstance(self.loss, ClassLoss):
            own = dict(self.loss.named_parameters())
            groups.append(ParameterGroup("vectors of classes", own, config.loss.class_rate, decays=False))
        self.optimiser = torch.optim.AdamW(
            optimiser_groups(groups, settings.rate, settings.weight_decay), lr=settings.rate, betas=settings.betas,
            fused=True if device.type == "cuda" else None,
        )  # fmt: skip
        decay = settings.average_decay
        self.average = WeightAverage(self.encoder, decay, statistics=True) if decay else None
        self.parameters = [p for group in groups for p in group.parameters.values()]
        self.dtype, self.precision_note = choose_precision(config.loop.precision, device)
        self.planned_steps = planned_steps or config.loop.epochs * batches.steps(0)
        self.rate = 0.0
        self.diagnostics: DriftDiagnostics | None = None
        self.graphs, self.graphs_note = choose_image_graphs(
            config.loop, self.loss, device, resident=self.resident is not None
        )
        self.captured: CapturedImageSteps | None = None
        for group in self.optimiser.param_groups:
            group["capturable"] = self.graphs

    @property
    def evaluated(self) -> ImageEncoder:
        """The encoder that is evaluated and saved: the weight average where there is one."""
        return self.encoder if self.average is None else self.average.model

    def sound(self) -> bool:
        """Return whether all weights, of the loss and averaged too, and statistics of batches are finite."""
        encoders = {self.encoder, self.evaluated}
        return all_finite([*self.parameters, *(x for one in encoders for x in one.state_dict().values())])

    def step(self, batch: TrainingImages | ChosenImages, number: int) -> tuple[Tensor, Tensor]:
        """Train on `batch`, step `number` of the run (from 0); return its loss and gradient norm, unread.

        Where embeddings are not numbers, both are NaN and nothing has changed, the memory included; of a captured
        step, the memory.
        """
        self.encoder.train()
        self.rate = rate_at(number, self.planned_steps, self.config.optimiser)
        share = 0.0 if self.average is None else self.average.share(number)
        if isinstance(batch, ChosenImages) and self._captures(len(batch.samples)):
            assert self.captured is not None
            loss, norm = self.captured.step(batch, self.rate, share)
            if isinstance(self.loss, CrossBatchLoss) and self.loss.fixed is not None:
                self.loss.fixed.advance()
        else:
            loss, norm = self._step(self._made(batch), self.rate, share)
        if self.diagnostics is not None:
            if int(self.diagnostics.loss.memory.step) % self.diagnostics.every == 0:
                self.settle()
            self.diagnostics.after_step()
        return loss, norm

    def _step(self, batch: ImageBatch, rate: float | Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
        """Do a step on a batch on the device; `rate` and `share` (of the weight average) are scalars."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["multiplier"]
        self.optimiser.zero_grad(set_to_none=True)
        with matmul_precision(self.device):
            with autocast(self.dtype, self.device):
                embeddings = self.encoder(batch.images).float()
                keys = None if self.slow is None else self.slow(batch.images).float()
            try:
                loss = self._loss_of(embeddings, batch, keys)
            except InputError:
                if not any_rank(not bool(embeddings.isfinite().all())):
                    raise
                return torch.tensor(math.nan), torch.tensor(math.nan)  # the loop says what it means
            loss.backward()  # type: ignore[no-untyped-call]
            loss = sum_gradients(self.trained, loss, 1)
        if isinstance(self.loss, CrossBatchLoss) and self.loss.fixed is not None:
            self.loss.fixed.enqueue()
        limit = self.config.optimiser.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        self.optimiser.step()
        if self.slow is not None:
            self.slow.update(self.encoder)
        if self.average is not None:
            self.average.move(share)
        return loss.detach(), norm

    def _loss_of(self, embeddings: Tensor, batch: ImageBatch, keys: Tensor | None) -> Tensor:
        more = {} if keys is None else {"keys": keys}
        value: Tensor = self.loss(embeddings, batch.labels, batch.ids, **more)
        return value

    def _made(self, batch: TrainingImages | ChosenImages) -> ImageBatch:
        """Return the batch on the device."""
        if isinstance(batch, ChosenImages):
            assert self.resident is not None
            draws = None if batch.draws is None else batch.draws.to(self.device)
            return self.resident.batch(batch.samples.to(self.device), draws)
        return ImageBatch(*(x.to(self.device) for x in (batch.images, batch.labels, batch.ids)))

    def _captures(self, size: int) -> bool:
        """Return whether the next step runs as a graph, or on the way to one; the memory's first steps do not."""
        if not self.graphs:
            return False
        if self.captured is None:
            memory = self.loss.memory if isinstance(self.loss, CrossBatchLoss) else None
            if memory is not None and not (int(memory.step) and memory.warm):
                return False
            if isinstance(self.loss, CrossBatchLoss):
                self.loss.fix(size)
            elif isinstance(self.loss, BatchLoss):
                self.loss.loss.backend = "reference"  # which does not look at what it compares
            changes = self.config.data.augment.changes
            self.captured = CapturedImageSteps(self._chosen_step, batch=size, changes=changes, device=self.device)
        return self.captured.batch == size

    def _chosen_step(self, samples: Tensor, draws: Tensor | None, rate: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        assert self.resident is not None
        return self._step(self.resident.batch(samples, draws), rate, share)

    def settle(self) -> None:
        """Bring what the host counts of a captured memory up to date, before somebody reads it."""
        if isinstance(self.loss, CrossBatchLoss) and self.loss.fixed is not None:
            self.loss.fixed.settle()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor a checkpoint must keep, by name: weights, moments, average, memory, random states."""
        self.settle()
        saved = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        saved |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        if self.slow is not None:
            saved |= {f"slow.{name}": value for name, value in self.slow.state_dict().items()}
        if self.average is not None:
            saved |= {f"average.{name}": value for name, value in self.average.model.state_dict().items()}
        return saved | optimiser_tensors(self.optimiser) | random_tensors(self.device)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`: what follows is bit for bit what would have followed."""
        self.captured = None
        if isinstance(self.loss, CrossBatchLoss):
            self.loss.release()
        self.encoder.load_state_dict(under(tensors, "encoder"))
        self.loss.load_state_dict(under(tensors, "loss"))
        if self.slow is not None:
            self.slow.load_state_dict(under(tensors, "slow"))
        if self.average is not None:
            self.average.model.load_state_dict(under(tensors, "average"))
        load_optimiser_tensors(self.optimiser, tensors)
        load_random_tensors(tensors, self.device)
