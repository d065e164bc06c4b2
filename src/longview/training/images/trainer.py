"""One step of metric learning, and everything that must be saved for the next one to be the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, DriftDiagnostics
from longview.models.encoders import ImageEncoder, optimiser_groups, parameter_groups
from longview.training.devices import load_random_tensors, random_tensors
from longview.training.images.config import ImageRunConfig
from longview.training.images.views import TrainingImages
from longview.training.optimiser import load_optimiser_tensors, optimiser_tensors, rate_at
from longview.training.precision import autocast, choose_precision, matmul_precision
from longview.training.tensors import under


class BatchLoss(nn.Module):
    """The loss of a batch alone, L2-normalised: what a run without a memory trains on."""

    def __init__(self, config: ImageRunConfig) -> None:
        super().__init__()
        self.loss, self.weight = config.loss.build(), config.loss.batch_weight

    def forward(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        """Return the loss of (b, d) embeddings, a scalar."""
        value: Tensor = self.loss(functional.normalize(embeddings, dim=1), labels, sample_ids=sample_ids)
        return self.weight * value


class ImageTrainer:
    """An encoder with its loss, memory and optimiser on one device.

    Args:
        config: the run.
        encoder: what it trains.
        device: where the encoder and the memory live.
        steps_per_epoch: what the schedule of the learning rate counts in.

    `precision_note` says why bf16 is off where it was wanted. `rate` is the learning rate of the last step.
    `diagnostics`, where set, watches the memory.
    """

    def __init__(
        self, config: ImageRunConfig, encoder: ImageEncoder, *, device: torch.device, steps_per_epoch: int
    ) -> None:
        self.config, self.device = config, device
        self.encoder = encoder.to(device)
        self.loss = _loss(config, self.encoder).to(device)
        groups = parameter_groups(self.encoder, config.rates)
        settings = config.optimiser
        self.optimiser = torch.optim.AdamW(
            optimiser_groups(groups, settings.rate, settings.weight_decay), lr=settings.rate, betas=settings.betas
        )
        self.parameters = [p for group in groups for p in group.parameters.values()]
        self.dtype, self.precision_note = choose_precision(config.loop.precision, device)
        self.planned_steps = config.loop.epochs * steps_per_epoch
        self.rate = 0.0
        self.diagnostics: DriftDiagnostics | None = None

    def step(self, batch: TrainingImages, number: int) -> tuple[Tensor, Tensor]:
        """Train on `batch`, step `number` of the run (from 0); return its loss and gradient norm, unread.

        Where embeddings are not numbers, both are NaN and nothing has changed, the memory included.
        """
        self.encoder.train()
        self.rate = rate_at(number, self.planned_steps, self.config.optimiser)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * group["multiplier"]
        images, labels, ids = (x.to(self.device) for x in (batch.images, batch.labels, batch.ids))
        self.optimiser.zero_grad(set_to_none=True)
        with matmul_precision(self.device):
            with autocast(self.dtype, self.device):
                embeddings = self.encoder(images).float()
            try:
                loss: Tensor = self.loss(embeddings, labels, ids)
            except InputError:
                if bool(embeddings.isfinite().all()):
                    raise
                return torch.tensor(math.nan), torch.tensor(math.nan)  # the loop says what it means
            loss.backward()  # type: ignore[no-untyped-call]
        limit = self.config.optimiser.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        self.optimiser.step()
        if self.diagnostics is not None:
            self.diagnostics.after_step()
        return loss.detach(), norm

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor a checkpoint must keep, by name: weights, moments, memory, random states."""
        saved = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        saved |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        return saved | optimiser_tensors(self.optimiser) | random_tensors(self.device)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`: what follows is bit for bit what would have followed."""
        self.encoder.load_state_dict(under(tensors, "encoder"))
        self.loss.load_state_dict(under(tensors, "loss"))
        load_optimiser_tensors(self.optimiser, tensors)
        load_random_tensors(tensors, self.device)


def _loss(config: ImageRunConfig, encoder: ImageEncoder) -> BatchLoss | CrossBatchLoss:
    if config.memory is None:
        return BatchLoss(config)
    return CrossBatchLoss(
        config.loss.build(),
        config.memory.of_width(encoder.dimension),
        memory_weight=config.loss.memory_weight,
        batch_weight=config.loss.batch_weight,
    )
