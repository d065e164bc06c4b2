"""The interface between a run and what it is for, and what all goals share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.labels import Task
from longview.data.schema import Inputs, Schema
from longview.errors import InputError
from longview.evaluation import Report
from longview.evaluation.evaluate import Which
from longview.evaluation.impression_report import ImpressionReport
from longview.models.retriever import Retriever
from longview.training.build import build_model
from longview.training.config import RunConfig

AnyReport = Report | ImpressionReport


class Batches(Protocol):
    """Training batches that depend on (epoch, step) and `tensors` alone, so that a run resumes anywhere."""

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[JaggedBatch]:
        """Yield the batches of `epoch` from `first_step` on."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep besides (epoch, step)."""
        ...

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        ...


class Loss(Protocol):
    """A training loss with random state of its own; the last one was a mean over `terms` positions."""

    terms: int

    def loss(self, model: Any, batch: JaggedBatch) -> Tensor:
        """Return the loss of `model` on `batch`, a scalar with gradients to the parameters."""
        ...

    def generators(self) -> tuple[torch.Generator, ...]:
        """Return the random generators that `loss` draws from besides the device's own."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        ...

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        ...


@dataclass(frozen=True)
class Baselines:
    """`reports` of the baselines that ran, and by name why others were `skipped`."""

    reports: list[Any] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a model came to at one thing it was trained for, on `test` and `validation`, beside `baselines`."""

    validation: AnyReport
    test: AnyReport
    baselines: Baselines = Baselines()

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready values."""
        return {
            "validation": self.validation.to_dict(),
            "test": self.test.to_dict(),
            "baselines": [report.to_dict() for report in self.baselines.reports],
            "skipped": self.baselines.skipped,
        }


class Goal(ABC):
    """What a run trains for. A goal with several parts has a report for each, the most important first.

    Args:
        config: the run.
        data: the data set; what may be learned of it is its training part.
        schema: what the model reads, of a trained run; by default made from `data`.
        tasks: what it predicts of candidates, likewise.
    """

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        schema: Schema | None = None,
        tasks: tuple[Task, ...] | None = None,
    ) -> None:
        self.config, self.data = config, data
        self.schema = schema_of(config, data) if schema is None else schema
        self.inputs = Inputs.of(self.schema, data)
        self.tasks = tasks or ()

    @abstractmethod
    def check(self) -> None:
        """Refuse what would only fail later.

        Raises:
            InputError: nothing to choose the best epoch by, or `loop.metric` is not among what is measured.
        """

    @abstractmethod
    def batches(self) -> Batches:
        """Return the training batches."""

    def build(self) -> Retriever:
        """Return a new model."""
        return build_model(self.config, self.data.num_items, self.data.meta.actions, self.schema, self.tasks)

    @abstractmethod
    def objective(self, device: torch.device) -> Loss:
        """Return the loss that the model trains on."""

    @abstractmethod
    def validate(self, model: Retriever, device: torch.device) -> dict[str, float]:
        """Return the metrics of `model` on validation by name, without intervals."""

    @abstractmethod
    def reports(self, model: Retriever, which: Which, device: torch.device) -> list[AnyReport]:
        """Return the full report of each part."""

    @abstractmethod
    def baselines(self, which: Which, started: Callable[[str], None] | None = None) -> list[Baselines]:
        """Return the baselines of each part; `started` is called with the name of each."""

    def _require_validation(self) -> None:
        if not len(self.data.split.validation):
            raise InputError(
                f"{self.data.meta.name}: no user has a validation target ({self.data.split.describe()}), so the best "
                "epoch cannot be chosen; prepare the data with another split or with fewer filters"
            )


def schema_of(config: RunConfig, data: PreparedData) -> Schema:
    """Return what the model of `config` reads of `data` beside items and times."""
    embedding = config.model.embedding
    return Schema.of(
        data,
        actions=embedding.actions != "none",
        strength_buckets=embedding.strength_buckets,
        context=embedding.context,
        context_buckets=embedding.context_buckets,
    )
