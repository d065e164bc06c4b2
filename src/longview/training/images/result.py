"""What a training run on images came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from longview.training.images.config import ImageRunConfig
from longview.training.state import LoopState

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ImageTrainingResult:
    """The best weights' reports and how they came about; `to_dict` is `result.json`.

    Reports are those of `evaluate_retrieval` with `name`, `data`, `split` and `fingerprint`; `validation` is None
    where all classes trained; `drift` is the newest record of the memory's diagnostics, if there is one.
    """

    out: Path
    config: ImageRunConfig
    state: LoopState
    test: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    validation: dict[str, Any] | None = None
    baselines: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    drift: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the best weights."""
        found: dict[str, float] = self.test["metrics"]
        return found

    @property
    def selected_by(self) -> str:
        """What the epoch was chosen by."""
        metric = self.config.loop.metric
        return "nothing (the last epoch's weights)" if metric == "latest" else f"validation {metric}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "task": "images",
            "name": self.config.name,
            "seed": self.config.loop.seed,
            "selected_by": self.selected_by,
            "best_epoch": self.state.best_epoch,
            "epochs": len(self.state.epochs),
            "steps": self.state.total_steps,
            "stopped": self.state.stopped,
            "seconds": round(self.state.seconds, 2),
            "seconds_per_epoch": round(median(record["seconds"] for record in self.state.epochs), 4),
            "test": self.test,
            "validation": self.validation,
            "baselines": self.baselines,
            "skipped": self.skipped,
            "drift": self.drift,
            "notes": self.notes,
            "history": self.state.epochs,
            "data": self.data,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
        }
