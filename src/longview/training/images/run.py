"""Train an image encoder on a prepared set of images and write its run directory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from longview.data.images import ImageSet
from longview.data.images.framing import Framing
from longview.errors import InputError, suggestion
from longview.evaluation.curves import draw, learning
from longview.evaluation.environment import environment
from longview.files import write_json
from longview.metric_learning.diagnostics_plot import draw_drift
from longview.models.encoders import ImageEncoder
from longview.ops.collectives import ranks
from longview.training import distributed
from longview.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from longview.training.devices import device_named, reproducible
from longview.training.images.card import write_image_card
from longview.training.images.config import ImageRunConfig
from longview.training.images.drift import diagnostics_state, restore_diagnostics, watch_memory
from longview.training.images.encoder_files import WEIGHTS, save_encoder
from longview.training.images.report import pixel_baseline, reports_of, validation_metrics
from longview.training.images.result import ImageTrainingResult
from longview.training.images.rundir import (
    ENCODER,
    check_images,
    describe_images,
    read_image_config,
    start_image_run,
)
from longview.training.images.trainer import ImageTrainer
from longview.training.images.views import TrainingBatches, Views, framing_of
from longview.training.log import RunLog
from longview.training.loop import Hooks
from longview.training.progress import TrainingProgress
from longview.training.rundir import read_json
from longview.training.running import check_directory, check_unchanged, run_loop, say_where
from longview.training.state import LoopState
from longview.training.weights import load_weights


def train_images(
    config: ImageRunConfig,
    images: ImageSet,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: TrainingProgress | None = None,
    baselines: bool = False,
) -> ImageTrainingResult:
    """Train the encoder of `config` on `images`, keep the weights best on held-out classes, and evaluate them on test.

    The run directory `out` is a model directory from the first evaluation on. On a CPU the result depends on
    `config`, `images` and the number of threads alone, resumed or not, the memory included.

    Started by torchrun, several processes train as one (`longview.training.distributed`): each has its classes of
    every batch, loss and batch normalisation are those of the whole batch, and all hold the same memory.

    Args:
        config: from `resolve_image_config`.
        images: the data set.
        out: a new or empty directory, or with `resume` the run to go on with.
        device: where to train.
        resume: continue from the last checkpoint; epochs, patience and minutes may have been raised meanwhile.
        progress: what to show; by default nothing.
        baselines: also evaluate the pixels themselves on test, for the card.

    Raises:
        InputError: a directory in use, nothing to resume, another config or data set than before, fewer classes than
            a batch wants, images too small for the encoder, none to evaluate on, an unknown metric or device.
        DivergenceError: the loss is no longer a number.
        InterruptedRunError: a signal asked to stop; a checkpoint has been written.

    Example:
        >>> config = resolve_image_config("image-small")  # doctest: +SKIP
        >>> train_images(config, ImageSet.open("data/omniglot"), "runs/omniglot").metrics["recall@1"]  # doctest: +SKIP
    """
    out = Path(out)
    views = Views.of(images, config.data)
    _check(config, images, views)
    with distributed.process_group(device_named(device)) as place:
        distributed.on_main(lambda: _check_directory(config, images, out, resume))
        progress = (progress if distributed.is_main() else None) or TrainingProgress()
        with reproducible(config.loop.seed, place), progress:
            run = _Run(config, images, views, out, place, progress)
            try:
                if resume:
                    run.resume()
                else:
                    distributed.on_main(lambda: start_image_run(out, config, images, run.framing))
                run.train()
                return run.finish(baselines)
            finally:
                run.batches.close()


class _Run:
    """The parts of one call of `train_images`."""

    def __init__(
        self,
        config: ImageRunConfig,
        images: ImageSet,
        views: Views,
        out: Path,
        device: torch.device,
        progress: TrainingProgress,
    ) -> None:
        self.config, self.images, self.views, self.out = config, images, views, out
        self.device, self.progress, self.state = device, progress, LoopState()
        encoder = config.encoder.build()
        self.framing = framing_of(config, encoder, images)
        _try(encoder, self.framing)
        self.batches = TrainingBatches(views.train, config, self.framing, device)
        self.trainer = ImageTrainer(config, encoder, self.batches, device=device)
        watch_memory(self.trainer, views.train, self.framing)
        self.log = RunLog(out, tensorboard=config.loop.tensorboard, silent=not distributed.is_main())
        self.notes = [note for note in (self.trainer.precision_note, self.trainer.graphs_note) if note]
        self.processes, _ = ranks()
        if self.processes > 1:
            self.notes.append(f"trained on {self.processes} processes, each on its share of every batch")
        distributed.begin_alike(self.trainer.trained, (), config.loop.seed)
        if views.held_out:
            self.notes.append(
                f"{views.held_out} of {images.train.num_classes} training classes were held out to choose the epoch by"
            )
        if self.batches.sampler.skipped:
            self.notes.append(
                f"{self.batches.sampler.skipped} training images are the only ones of their class: left out"
            )

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
        restore_diagnostics(self.trainer.diagnostics, tensors, values["drift"], self.device)
        self.state = LoopState.from_dict(values["state"])
        self.log.rewind(self.state.total_steps)
        say_where(self.state, self.config.loop, path, self.progress)

    def train(self) -> None:
        """Run the loop."""
        run_loop(
            self.config.loop, self.trainer, self.batches, self.state,
            hooks=Hooks(self._validate, self._keep_best, self._checkpoint),
            log=self.log, progress=self.progress, notes=self.notes,
        )  # fmt: skip

    def finish(self, baselines: bool) -> ImageTrainingResult:
        """Evaluate the best weights, on test for the first and only time, and write the result."""
        encoder = self.trainer.evaluated
        load_weights(self.out / ENCODER / WEIGHTS, encoder)
        self.progress.note("evaluating the best weights on test" + (", and the pixels" if baselines else ""))
        test, validation, compared, skipped = distributed.on_main(lambda: self._reports(encoder, baselines))
        diagnostics = self.trainer.diagnostics
        records = [] if diagnostics is None else diagnostics.records
        result = ImageTrainingResult(
            out=self.out,
            config=self.config,
            state=self.state,
            test=test,
            validation=validation,
            baselines=compared,
            skipped=skipped,
            drift=records[-1] if records else None,
            environment={**environment(), "device": str(self.device)},
            data=describe_images(self.images),
            notes=[*self.notes, *([] if diagnostics is None else diagnostics.warnings)],
        )
        distributed.on_main(lambda: self._write(result.to_dict()))
        return result

    def _reports(
        self, encoder: ImageEncoder, baselines: bool
    ) -> tuple[dict[str, Any], dict[str, Any] | None, list[dict[str, Any]], dict[str, str]]:
        """Return the reports on test and validation, those of the baselines, and why one was skipped."""
        reports = partial(reports_of, encoder, self.images, self.framing, self.config, device=self.device)
        compared, skipped = pixel_baseline(self.images, self.framing, self.config) if baselines else ([], {})
        (test,) = reports("test", picture=self.out / "gallery.png")
        return test, reports("validation")[0] if len(self.views.validation) else None, compared, skipped

    def _write(self, result: dict[str, Any]) -> None:
        self._pictures(result)
        write_image_card(self.out, result)

    def _pictures(self, result: dict[str, Any]) -> None:
        panel = partial(learning, result=result)
        drawn = draw(self.out / "curves.png", [panel], f"{result['name']} on {result['test']['data']}")
        diagnostics = self.trainer.diagnostics
        if diagnostics is None:
            return
        report = diagnostics.report()
        write_json(self.out / "drift.json", report)
        if drawn and any(record["by_age"] for record in report["records"]):
            draw_drift(self.out / "drift.png", report)

    def _validate(self) -> dict[str, float]:
        return distributed.on_main(self._metrics)

    def _metrics(self) -> dict[str, float]:
        found = {"latest": float(self.state.epoch)} if self.config.loop.metric == "latest" else {}
        if len(self.views.validation):
            found |= validation_metrics(
                self.trainer.evaluated, self.views.validation, self.framing, self.config, self.device
            )
        return found

    def _keep_best(self) -> None:
        distributed.on_main(lambda: save_encoder(self.out / ENCODER, self.trainer.evaluated))

    def _checkpoint(self) -> None:
        tensors, drift = diagnostics_state(self.trainer.diagnostics)
        values = {
            "state": self.state.to_dict(), "fingerprint": self.images.fingerprint, "drift": drift,
            "processes": self.processes,
        }  # fmt: skip
        tensors, step = distributed.with_all_ranks(self.trainer.tensors() | tensors), self.state.total_steps
        distributed.on_main(lambda: save_checkpoint(self.out / "checkpoint", step, tensors, values))


def _check(config: ImageRunConfig, images: ImageSet, views: Views) -> None:
    """Refuse what would only fail after training."""
    if not len(images.query) or not len(images.gallery):
        raise InputError(
            f"{images.path}: no images to evaluate on (split test, or query and gallery); prepare the images with some "
            "classes held out (test_classes)"
        )
    names = ["latest"]
    if len(views.validation):
        names += [*(f"recall@{k}" for k in config.evaluation.recall_at), "map@r", "r_precision", "mrr"]
    metric = config.loop.metric
    if metric not in names:
        why = "" if len(views.validation) else " (no classes are held out: data.validation_classes is 0)"
        raise InputError(f"loop.metric {metric!r}{suggestion(metric, names)}: one of {', '.join(names)}{why}")


@torch.no_grad()
def _try(encoder: ImageEncoder, framing: Framing) -> None:
    """Embed one image, so that a size that the encoder cannot take is refused before anything is written."""
    encoder.eval()(torch.zeros(1, *framing.shape))
    encoder.train()


def _check_directory(config: ImageRunConfig, images: ImageSet, out: Path, resume: bool) -> None:
    """Refuse a directory in use, or a run that cannot go on with this config and data set."""
    check_directory(out, resume)
    if resume:
        check_images(out, read_json(out / "data.json"), images)
        check_unchanged(out, *(c.model_dump(mode="json") for c in (read_image_config(out), config)))
