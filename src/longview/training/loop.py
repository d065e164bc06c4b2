"""The training loop: epochs of steps, a look at validation, the best weights kept, a checkpoint to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from longview.errors import LongviewError
from longview.evaluation.impression_report import lower_is_better
from longview.training.config import LoopConfig
from longview.training.distributed import agreed_time, any_rank, total
from longview.training.log import RunLog
from longview.training.progress import Status, TrainingProgress, memory_in_use
from longview.training.state import LoopState

CHECKPOINT_SECONDS = 10.0  # short epochs share a checkpoint: what a kill can cost stays under this
READ_EVERY = 20  # steps between looks at the losses on an accelerator, where each look waits for the device


class DivergenceError(LongviewError):
    """The loss or the weights stopped being numbers."""


class StepTrainer(Protocol):
    """What does a step; `Trainer` for logs. `rate` is the learning rate of the last step."""

    device: torch.device
    rate: float

    def step(self, batch: Any, number: int) -> tuple[Tensor, Tensor]:
        """Train on `batch`, step `number` of the run (from 0); return its loss and gradient norm, unread."""
        ...

    def sound(self) -> bool:
        """Return whether all weights are finite, those that are evaluated included."""
        ...


class StepBatches(Protocol):
    """Training batches, each with `num_tokens`, which weighs its loss; an epoch can be entered at any step."""

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        ...

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        """Yield the batches of `epoch` from `first_step` on."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings.

    `evaluate()` → metrics on validation; `keep_best()` saves the evaluated weights; `checkpoint()` saves
    everything; `stop_requested()` → a signal has arrived.
    """

    evaluate: Callable[[], dict[str, float]]
    keep_best: Callable[[], None]
    checkpoint: Callable[[], None]
    stop_requested: Callable[[], bool] = lambda: False


class Loop:
    """Runs a trainer over `batches` from `state` on until a reason to stop, which `state.stopped` then names."""

    def __init__(
        self,
        config: LoopConfig,
        trainer: StepTrainer,
        batches: StepBatches,
        state: LoopState,
        *,
        hooks: Hooks,
        log: RunLog,
        progress: TrainingProgress,
    ) -> None:
        self.config, self.trainer, self.batches, self.state = config, trainer, batches, state
        self.hooks, self.log, self.progress = hooks, log, progress
        self._unread: list[tuple[Tensor, Tensor, int]] = []
        self._read_every = 1 if trainer.device.type == "cpu" else READ_EVERY
        self._last_metric: float | None = None
        self._norm = 0.0
        self._saved = -math.inf  # when the last checkpoint was written

    def run(self) -> None:
        """Train until the epochs, the patience or the minutes are used up, or a signal asks to stop.

        Raises:
            DivergenceError: a loss, or weights, that are not numbers; the last checkpoint is untouched.
        """
        state = self.state
        state.stopped = self._reason()
        while state.stopped is None:
            self._epoch()
            if state.stopped is None:
                self._end_epoch()

    def _reason(self) -> str | None:
        state, config = self.state, self.config
        if state.stale >= config.patience:
            return "patience"
        if state.epoch >= config.epochs:
            return "epochs"
        if config.max_minutes is not None and state.seconds >= 60 * config.max_minutes:
            return "max_minutes"
        return None

    def _epoch(self) -> None:
        """Train on what is left of the current epoch."""
        state, steps = self.state, self.batches.steps(self.state.epoch)
        self._mark = agreed_time()
        for batch in self.batches.epoch(state.epoch, state.step):
            self._step(batch, steps)
            if self.hooks.stop_requested():
                self._read()
                self._checkpoint()
                state.stopped = "interrupted"
                return
            every = self.config.checkpoint_every_steps
            if every and state.total_steps % every == 0 and state.step < steps:
                self._read()
                self._checkpoint()
        self._show(steps)

    def _checkpoint(self) -> None:
        self._check_weights()
        self.hooks.checkpoint()

    def _check_weights(self) -> None:
        """Stop where the last step left weights that are no numbers, whose loss nobody has seen yet."""
        if any_rank(not self.trainer.sound()):
            self._diverged("weights are no longer finite", -1)

    def _step(self, batch: Any, steps: int) -> None:
        state = self.state
        loss, norm = self.trainer.step(batch, state.total_steps)
        self._unread.append((loss, norm, int(total(batch.num_tokens))))
        state.step += 1
        state.total_steps += 1
        if len(self._unread) >= self._read_every:
            self._show(steps)

    def _show(self, steps: int) -> None:
        if self._unread:
            self._read()
            self.progress.step(self._status(steps))

    def _read(self) -> None:
        """Take in the losses of the last steps, and the time they took."""
        state = self.state
        if self._unread:
            columns = zip(*self._unread, strict=True)
            losses, norms = (torch.stack(list(next(columns))).double().tolist() for _ in range(2))
            for offset, (loss, norm, (_, _, events)) in enumerate(zip(losses, norms, self._unread, strict=True)):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient norm became {norm}"
                    self._diverged(what, offset - len(losses))
                state.loss_sum += loss * events
                state.events += events
            self._norm = norms[-1]
            self._unread.clear()
        now = agreed_time()
        state.epoch_seconds += now - self._mark
        state.seconds += now - self._mark
        self._mark = now

    def _diverged(self, what: str, back: int) -> NoReturn:
        """Stop, saying `what` happened; `back` is the place of the step among those taken, −1 for the newest."""
        state = self.state
        step, batch = state.total_steps + back + 1, state.step + back + 1
        steps = self.batches.steps(state.epoch)
        self.log.write("diverged", step - 1, epoch=state.epoch + 1, batch=batch)
        raise DivergenceError(
            f"{what} at step {step} (epoch {state.epoch + 1}, batch {batch} of {steps}); the last good checkpoint and "
            "model, if there are any yet, are kept. Lower optimiser.rate, raise optimiser.warmup_steps or set "
            "optimiser.clip_norm"
        )

    def _end_epoch(self) -> None:
        """Record the epoch, evaluate where it is due, and save."""
        self._check_weights()
        state, config = self.state, self.config
        loss, speed = state.loss_sum / state.events, state.events / max(state.epoch_seconds, 1e-9)
        record = {
            "epoch": state.epoch + 1,
            "loss": loss,
            "seconds": round(state.epoch_seconds, 4),
            "events_per_second": round(speed, 1),
            "gradient_norm": self._norm,
            "rate": self.trainer.rate,
            "memory": memory_in_use(self.trainer.device),
        }
        self.log.write("epoch", state.total_steps, **record)
        state.epoch, state.step = state.epoch + 1, 0
        state.loss_sum, state.events, state.epoch_seconds = 0.0, 0, 0.0
        due = state.epoch % config.evaluate_every == 0 and state.epoch >= config.evaluate_from
        if due or self._reason() is not None:  # the last epoch is always looked at
            record |= self._evaluate()
        state.epochs.append(record)
        reason = self._reason()
        if reason is not None or agreed_time() - self._saved >= CHECKPOINT_SECONDS:
            self.hooks.checkpoint()
            self._saved = agreed_time()
        state.stopped = reason

    def _evaluate(self) -> dict[str, float]:
        state, begin = self.state, agreed_time()
        metrics = self.hooks.evaluate()
        self._last_metric = metrics[self.config.metric]
        better = state.best is None or self._better(self._last_metric, state.best)
        state.stale = 0 if better else state.stale + 1
        if better:
            state.best, state.best_epoch, state.best_metrics = self._last_metric, state.epoch, metrics
            self.hooks.keep_best()
        state.seconds += agreed_time() - begin
        self.log.write("evaluation", state.total_steps, epoch=state.epoch, best=better, **metrics)
        self.progress.evaluation(state.epoch, metrics, better)
        return metrics

    def _better(self, new: float, old: float) -> bool:
        return new < old if lower_is_better(self.config.metric) else new > old

    def _status(self, steps: int) -> Status:
        state = self.state
        per_step = state.epoch_seconds / max(state.step, 1)
        left = per_step * (steps - state.step)
        return Status(
            epoch=state.epoch + 1,
            epochs=self.config.epochs,
            step=state.step,
            steps=steps,
            loss=state.loss_sum / max(state.events, 1),
            events_per_second=state.events / max(state.epoch_seconds, 1e-9),
            epoch_seconds_left=left,
            seconds_left=left + per_step * steps * (self.config.epochs - state.epoch - 1),
            memory=memory_in_use(self.trainer.device),
            metric=self.config.metric,
            last=self._last_metric,
            best=state.best,
        )
