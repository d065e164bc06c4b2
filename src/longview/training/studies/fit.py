"""Train a model in memory: what a cell of a study needs of a run, without its directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from longview.data.dataset import PreparedData
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.devices import reproducible
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.interrupt import stop_requests
from longview.training.log import RunLog
from longview.training.loop import Hooks, Loop
from longview.training.progress import TrainingProgress
from longview.training.running import InterruptedRunError
from longview.training.state import LoopState
from longview.training.trainer import Trainer

Choice = Literal["best", "last"]


@dataclass(frozen=True)
class Fitted:
    """A trained model, how its training went, and what was off that could be expected to be on."""

    model: Retriever
    state: LoopState
    notes: list[str]


def fit(
    config: RunConfig,
    data: PreparedData,
    *,
    device: torch.device,
    choose: Choice = "best",
    deadline: float | None = None,
) -> Fitted:
    """Train the retrieval model of `config` on `data` and return it.

    Args:
        config: the run.
        data: the data set.
        device: where.
        choose: the weights that are returned: `best` on validation, as those of `train`, or the `last`. These cost no
            validation, which for long histories is a good part of an epoch; patience means nothing then.
        deadline: `time.time()` at which training gives up.

    Raises:
        InputError: no validation users, or an unknown metric.
        DivergenceError: the loss is no longer a number.
        InterruptedRunError: the deadline is over, or a signal came; nothing is kept.
    """
    goal = RetrievalGoal(config, data)
    goal.check()
    with reproducible(config.loop.seed, device), stop_requests() as asked:
        batches = goal.batches()
        trainer = Trainer(config, data, device=device, steps_per_epoch=batches.steps(0), goal=goal)
        kept: dict[str, torch.Tensor] = {}
        state = LoopState()

        def validate() -> dict[str, float]:
            if choose == "last":
                return {config.loop.metric: float(state.epoch)}  # the later, the better
            return goal.validate(trainer.evaluated, device)

        def keep() -> None:
            if choose == "best":
                kept.update({name: value.clone() for name, value in trainer.evaluated.state_dict().items()})

        def over() -> bool:
            return asked() or (deadline is not None and time.time() >= deadline)

        hooks = Hooks(validate, keep, lambda: None, over)
        log = RunLog(Path(), silent=True)
        Loop(config.loop, trainer, batches, state, hooks=hooks, log=log, progress=TrainingProgress()).run()
    if state.stopped == "interrupted":
        raise InterruptedRunError(f"stopped at step {state.total_steps}; this cell begins again with the same study")
    if kept:
        trainer.evaluated.load_state_dict(kept)
    notes = [note for note in (trainer.precision_note, trainer.fp8_note, trainer.graphs_note) if note]
    return Fitted(trainer.evaluated, state, notes)
