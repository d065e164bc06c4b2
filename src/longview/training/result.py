"""What a training run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from longview.evaluation import Report
from longview.training.config import RunConfig
from longview.training.state import LoopState

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainingResult:
    """The best weights' reports and how they came about; `to_dict` is `result.json`.

    `stopped` is `epochs`, `patience` or `max_minutes`; `seconds` is training with validation, without the final
    evaluation; `baselines` are reports on test, `skipped` says why others are not.
    """

    out: Path
    config: RunConfig
    state: LoopState
    validation: Report
    test: Report
    environment: dict[str, Any]
    data: dict[str, Any]
    baselines: list[Report] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        return self.state.best_epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the best weights."""
        return self.test.metrics

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
            "validation": self.validation.to_dict(),
            "test": self.test.to_dict(),
            "baselines": [report.to_dict() for report in self.baselines],
            "skipped": self.skipped,
            "notes": self.notes,
            "history": self.state.epochs,
            "data": self.data,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
        }
