"""The training objective: which next item, out of the catalogue, follows each event."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.models.retriever import Retriever
from longview.ops.collectives import ranks
from longview.ops.softmax_loss import full_softmax_loss, sampled_softmax_loss
from longview.training.config import LossConfig
from longview.training.negatives import NegativeSampler


class Objective:
    """Softmax loss of a model on a batch, over all items or a sample of them, as `config` says.

    With `sparse` the item table gets a sparse gradient, a row for each target and negative.

    Raises:
        InputError: label smoothing together with a sampled softmax; `sparse` with a full one.
    """

    def __init__(
        self, config: LossConfig, data: PreparedData, *, device: torch.device, seed: int, sparse: bool = False
    ) -> None:
        if config.kind == "sampled" and config.label_smoothing:
            raise InputError("loss.label_smoothing spreads weight over the whole catalogue: use it with loss.kind full")
        if config.kind == "full" and sparse:
            raise InputError(
                "optimiser.tables rowwise moves only the item rows a step touched, and a full softmax touches them "
                "all: set loss.kind sampled, or optimiser.tables dense"
            )
        self.config, self.sparse = config, sparse
        self.terms = 0
        self.sampler = NegativeSampler(config, data, device=device, seed=seed) if config.kind == "sampled" else None

    def loss(self, model: Retriever, batch: JaggedBatch) -> Tensor:
        """Return the mean loss over the positions of `batch` that count, a scalar with gradients to the parameters."""
        assert batch.targets is not None, "training batches carry targets"
        found = model.queries(batch)
        counted = None if batch.counted is None else found.of(batch.counted)
        return self.of_queries(model, found.vectors, found.of(batch.targets), counted)

    def of_queries(self, model: Retriever, queries: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the mean loss of `queries` (n, width) whose next items are `targets` (n,), where `counted` (n,)."""
        items, self.terms = model.item_vectors(), len(queries)
        if self.config.actions and counted is not None and ranks()[0] > 1:  # alone, nobody asks for their number
            self.terms = int(counted.sum())
        if self.sampler is None:
            return full_softmax_loss(
                queries,
                items,
                targets,
                temperature=self.config.temperature,
                label_smoothing=self.config.label_smoothing,
                counted=counted,
            )
        negatives = self.sampler.draw(targets, counted)
        return sampled_softmax_loss(
            queries,
            items,
            targets,
            negatives.items,
            temperature=self.config.temperature,
            negative_log_q=negatives.log_q,
            target_log_q=negatives.target_log_q,
            counted=counted,
            sparse=self.sparse,
        )

    def generators(self) -> tuple[torch.Generator, ...]:
        """Return the random generators that `loss` draws from besides the device's own."""
        return () if self.sampler is None else (self.sampler.generator,)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        return {} if self.sampler is None else {"generator": self.sampler.state()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        if self.sampler is not None:
            self.sampler.load_state(tensors["generator"])
