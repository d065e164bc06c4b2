"""What a run is whatever it trains: a directory of its own, one configuration, a loop that signals end well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longview.errors import InputError, LongviewError
from longview.evaluation.environment import environment
from longview.training import distributed
from longview.training.config import LoopConfig
from longview.training.interrupt import stop_requests
from longview.training.log import RunLog
from longview.training.loop import Hooks, Loop, StepBatches, StepTrainer
from longview.training.progress import TrainingProgress
from longview.training.state import LoopState

MAY_CHANGE = {"epochs", "patience", "max_minutes", "checkpoint_every_steps", "tensorboard", "evaluate_every", "graphs"}


class InterruptedRunError(LongviewError):
    """A signal stopped the run after a checkpoint; the message says where and how to go on."""

    exit_code = 130  # what a shell reports for a program ended by Ctrl-C


def check_directory(out: Path, resume: bool) -> None:
    """Refuse a directory in use, or with `resume` one without a run.

    Raises:
        InputError: it says what to do.
    """
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            remedy = ", or go on with it by --resume" if (out / "config.json").exists() else ", or empty it"
            raise InputError(f"{out} already exists; choose another directory{remedy}")
    elif not (out / "config.json").exists():
        raise InputError(f"{out}: there is no run to resume; train without --resume")


def check_unchanged(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with the run in `out`, begun with the configuration `before`, with another one.

    Raises:
        InputError: it names every setting that differs and may not.
    """
    changed = []
    for group in [key for key in now if key != "name"]:
        one, other = (x[group] if isinstance(x[group], dict) else {"": x[group]} for x in (before, now))
        changed += [
            f"{group}.{key}".rstrip(".")
            for key in dict.fromkeys([*other, *one])
            if one.get(key) != other.get(key) and not (group == "loop" and key in MAY_CHANGE)
        ]
    if changed:
        raise InputError(
            f"{out}: resuming needs the configuration the run began with, but {', '.join(changed)} differ; "
            f"leave them alone or train in another directory (these may change: {', '.join(sorted(MAY_CHANGE))})"
        )


def say_where(state: LoopState, loop: LoopConfig, checkpoint: Path, progress: TrainingProgress) -> None:
    """Tell the user where a resumed run goes on."""
    if state.epoch >= loop.epochs or state.stale >= loop.patience:
        progress.note(f"the training was done after {state.epoch} epochs: only evaluating again")
    else:
        progress.note(f"resuming at epoch {state.epoch + 1}, step {state.step + 1} from {checkpoint}")


def run_loop(
    loop: LoopConfig,
    trainer: StepTrainer,
    batches: StepBatches,
    state: LoopState,
    *,
    hooks: Hooks,
    log: RunLog,
    progress: TrainingProgress,
    notes: list[str],
) -> None:
    """Train from `state` on, with signals turned into a checkpoint beside the log; `notes` are told first.

    Raises:
        DivergenceError: the loss is no longer a number.
        InterruptedRunError: a signal to any process asked to stop; a checkpoint has been written.
    """
    for note in notes:
        progress.note(note)
    log.write("start", state.total_steps, **environment(), device=str(trainer.device), notes=notes)
    with stop_requests() as asked:
        hooks = replace(hooks, stop_requested=lambda: distributed.any_rank(asked()))
        Loop(loop, trainer, batches, state, hooks=hooks, log=log, progress=progress).run()
    log.write("stop", state.total_steps, reason=state.stopped)
    log.close()
    if state.stopped == "interrupted":
        raise InterruptedRunError(
            f"stopped after epoch {state.epoch + 1}, step {state.step}; the checkpoint is in "
            f"{log.path.parent / 'checkpoint'}. To go on: the same command with --resume (resume=True in Python)"
        )
