"""What a training run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from longview.training.config import RunConfig
from longview.training.goals.goal import Outcome
from longview.training.state import LoopState

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainingResult:
    """The best weights' reports and how they came about; `to_dict` is `result.json`.

    `stopped` is `epochs`, `patience` or `max_minutes`; `seconds` is training with validation, without the final
    evaluation; `outcome` is what the model came to, `further` what it came to at the other things it trained for (with
    `task: both` retrieval is the outcome, ranking the further one).
    """

    out: Path
    config: RunConfig
    state: LoopState
    outcome: Outcome
    environment: dict[str, Any]
    data: dict[str, Any]
    further: tuple[Outcome, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def test(self) -> Any:
        """The report on test, of the kind the run was for."""
        return self.outcome.test

    @property
    def validation(self) -> Any:
        """The report on validation."""
        return self.outcome.validation

    @property
    def baselines(self) -> list[Any]:
        """Reports of the baselines on test."""
        return self.outcome.baselines.reports

    @property
    def skipped(self) -> dict[str, str]:
        """Why other baselines were not evaluated, by name."""
        return self.outcome.baselines.skipped

    @property
    def best_epoch(self) -> int:
        return self.state.best_epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the best weights, at everything they were trained for."""
        return {k: v for outcome in (*self.further, self.outcome) for k, v in outcome.test.metrics.items()}

    @property
    def seconds_per_epoch(self) -> float:
        """Median training time of an epoch, without evaluation."""
        return float(median(record["seconds"] for record in self.state.epochs))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.config.name,
            "seed": self.config.loop.seed,
            "selected_by": f"validation {self.config.loop.metric}",
            "best_epoch": self.best_epoch,
            "epochs": len(self.state.epochs),
            "stopped": self.state.stopped,
            "seconds": round(self.state.seconds, 2),
            "seconds_per_epoch": round(self.seconds_per_epoch, 4),
            **self.outcome.to_dict(),
            **({"further": [outcome.to_dict() for outcome in self.further]} if self.further else {}),
            "notes": self.notes,
            "history": self.state.epochs,
            "data": self.data,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
        }
