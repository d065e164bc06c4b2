"""Where a run stands: the part of a checkpoint that is not a tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LoopState:
    """Position, best result and running sums of a run.

    `epoch` and `step` are those of the next batch, `total_steps` the batches trained on so far; `best` is the best
    value of the selection metric and `stale` the evaluations since; `seconds` the training time spent, over all
    resumes; `loss_sum` and `events` belong to the current epoch.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    events: int = 0
    epoch_seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """Undo `to_dict`."""
        return cls(**values)
