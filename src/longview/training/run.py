"""Train a model on a prepared data set and write its run directory."""

from __future__ import annotations

from pathlib import Path

import torch

from longview.data.dataset import PreparedData
from longview.evaluation.card import write_card
from longview.evaluation.environment import environment
from longview.evaluation.evaluate import Which
from longview.models.retriever import Retriever
from longview.ops.collectives import ranks
from longview.training import distributed
from longview.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from longview.training.config import RunConfig
from longview.training.devices import device_named, reproducible
from longview.training.goals import Baselines, Goal, Outcome, make_goal
from longview.training.log import RunLog
from longview.training.loop import Hooks
from longview.training.progress import TrainingProgress
from longview.training.result import TrainingResult
from longview.training.rundir import (
    WEIGHTS,
    check_fingerprint,
    describe_data,
    read_config,
    read_json,
    save_model,
    start_run,
)
from longview.training.running import check_directory, check_unchanged, run_loop, say_where
from longview.training.state import LoopState
from longview.training.tensors import under
from longview.training.trainer import Trainer
from longview.training.weights import load_weights

SPLITS: tuple[Which, Which] = ("validation", "test")


def train(
    config: RunConfig,
    data: PreparedData,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: TrainingProgress | None = None,
    baselines: bool = False,
) -> TrainingResult:
    """Train the model of `config` on `data`, keep the weights best on validation, and evaluate them.

    Started by torchrun, several processes train as one (`longview.training.distributed`): all return the same result,
    and rank 0 writes it.

    The run directory `out` is a model directory from the first evaluation on. On a CPU the result depends on
    `config`, `data` and the number of threads alone, resumed or not; on a GPU sums of gradients may differ in the
    last bits between runs.

    Args:
        config: from `resolve_config`.
        data: the data set.
        out: a new or empty directory, or with `resume` the run to go on with.
        device: where to train.
        resume: continue from the last checkpoint; epochs, patience and minutes may have been raised meanwhile.
        progress: what to show; by default nothing (`make_progress` shows a live line).
        baselines: also evaluate the baselines on test, for the card.

    Raises:
        InputError: a directory in use, nothing to resume, another config, data set or number of processes than before,
            no validation users, an unknown metric or device.
        DivergenceError: the loss is no longer a number.
        InterruptedRunError: a signal asked to stop; a checkpoint has been written.

    Example:
        >>> result = train(resolve_config("hstu-small"), PreparedData.open("data"), "runs/first")  # doctest: +SKIP
        >>> result.test.metrics["ndcg@10"]  # doctest: +SKIP
    """
    out = Path(out)
    goal = make_goal(config, data)
    goal.check()
    with distributed.process_group(device_named(device)) as device:
        distributed.check_processes(config)
        distributed.on_main(lambda: _check(config, data, out, resume))
        progress = (progress if distributed.is_main() else None) or TrainingProgress()
        with reproducible(config.loop.seed, device), progress:
            run = _Run(config, data, goal, out, device, progress)
            if resume:
                run.resume()
            else:
                distributed.on_main(lambda: start_run(out, config, data, goal.schema, goal.tasks))
            return run.finish(run.train(), baselines)


class _Run:
    """The parts of one call of `train`."""

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        goal: Goal,
        out: Path,
        device: torch.device,
        progress: TrainingProgress,
    ) -> None:
        self.config, self.data, self.goal, self.out = config, data, goal, out
        self.device, self.progress = device, progress
        self.batches = goal.batches()
        self.trainer = Trainer(config, data, device=device, steps_per_epoch=self.batches.steps(0), goal=goal)
        self.state = LoopState()
        self.log = RunLog(out, tensorboard=config.loop.tensorboard, silent=not distributed.is_main())
        made = self.trainer
        self.notes = [note for note in (made.precision_note, made.fp8_note, made.graphs_note) if note]
        self.processes, _ = ranks()
        if self.processes > 1:
            self.notes.append(f"trained on {self.processes} processes, each on its share of every batch")
        distributed.begin_alike(self.trainer.model, self.trainer.objective.generators(), config.loop.seed)

    def resume(self) -> None:
        """Load the last checkpoint, and take the log back to it."""
        path = distributed.on_main(lambda: latest_checkpoint(self.out / "checkpoint"))
        if path is None:
            self.log.rewind(-1)
            self.progress.note(f"{self.out} has no checkpoint yet: starting from the beginning")
            return
        tensors, values = load_checkpoint(path)
        tensors = distributed.of_this_rank(tensors, values.get("processes", 1))
        self.trainer.load_tensors(tensors)
        self.batches.load_tensors(under(tensors, "batches"))
        self.state = LoopState.from_dict(values["state"])
        self.log.rewind(self.state.total_steps)
        say_where(self.state, self.config.loop, path, self.progress)

    def train(self) -> LoopState:
        """Run the loop."""
        run_loop(
            self.config.loop, self.trainer, self.batches, self.state,
            hooks=Hooks(self._validate, self._keep_best, self._checkpoint),
            log=self.log, progress=self.progress, notes=self.notes,
        )  # fmt: skip
        return self.state

    def finish(self, state: LoopState, baselines: bool) -> TrainingResult:
        """Evaluate the best weights, on test for the first and only time, and write the result."""
        best = self.trainer.evaluated
        load_weights(self.out / WEIGHTS, best)
        self.progress.note("evaluating the best weights on test" + (", and the baselines" if baselines else ""))
        outcomes = distributed.on_main(lambda: self._outcomes(best, baselines))
        result = TrainingResult(
            out=self.out,
            config=self.config,
            state=state,
            outcome=outcomes[0],
            further=tuple(outcomes[1:]),
            environment={**environment(), "device": str(self.device)},
            data=describe_data(self.data),
            notes=self.notes,
        )
        distributed.on_main(lambda: write_card(self.out, result.to_dict()))
        return result

    def _outcomes(self, best: Retriever, baselines: bool) -> list[Outcome]:
        validation, test = (self.goal.reports(best, which, self.device) for which in SPLITS)
        compared = self.goal.baselines("test") if baselines else [Baselines()] * len(test)
        return [Outcome(*parts) for parts in zip(validation, test, compared, strict=True)]

    def _validate(self) -> dict[str, float]:
        return distributed.on_main(lambda: self.goal.validate(self.trainer.evaluated, self.device))

    def _keep_best(self) -> None:
        distributed.on_main(lambda: save_model(self.out, self.trainer.evaluated, epoch=self.state.epoch))

    def _checkpoint(self) -> None:
        values = {
            "state": self.state.to_dict(), "fingerprint": self.data.fingerprint, "processes": self.processes,
        }  # fmt: skip
        tensors = self.trainer.tensors() | {f"batches.{name}": t for name, t in self.batches.tensors().items()}
        tensors, step = distributed.with_all_ranks(tensors), self.state.total_steps
        distributed.on_main(lambda: save_checkpoint(self.out / "checkpoint", step, tensors, values))


def _check(config: RunConfig, data: PreparedData, out: Path, resume: bool) -> None:
    """Refuse what would only fail later, before anything is written."""
    check_directory(out, resume)
    if resume:
        check_fingerprint(out, read_json(out / "data.json"), data)
        check_unchanged(out, *(c.model_dump(mode="json") for c in (read_config(out), config)))
