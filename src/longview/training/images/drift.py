"""The diagnostics of a run's memory: their probe, and their state in a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from longview.data.images import ImageBatches, ImageView, InOrder
from longview.data.images.framing import Framing
from longview.metric_learning import CrossBatchLoss, DriftDiagnostics
from longview.training.images.trainer import ImageTrainer

PER_CLASS = 4


def watch_memory(trainer: ImageTrainer, view: ImageView, framing: Framing) -> None:
    """Give `trainer` diagnostics where it has a memory and the config asks for them: the probe is of `view`."""
    config = trainer.config
    if not isinstance(trainer.loss, CrossBatchLoss) or not config.evaluation.drift_every:
        return
    classes = np.random.default_rng(0).permutation(np.unique(view.labels))
    rows: list[int] = []
    for number in classes.tolist():
        members = view.rows[view.labels == number][:PER_CLASS]
        if len(members) > 1:
            rows.extend(members.tolist())
        if len(rows) >= config.evaluation.drift_probes:
            break
    probe = ImageView(view.images, np.asarray(rows[: config.evaluation.drift_probes], np.int64))
    with ImageBatches(probe, InOrder(len(probe), len(probe)), framing, bad_images=config.data.bad_images) as batches:
        batch = next(iter(batches.epoch(0)))
    trainer.diagnostics = DriftDiagnostics(
        trainer.loss,
        trainer.slow or trainer.encoder,  # what makes the rows that are stored
        batch.images.to(trainer.device),
        batch.labels.to(trainer.device),
        every=config.evaluation.drift_every,
    )


def diagnostics_state(diagnostics: DriftDiagnostics | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON-ready rest that a checkpoint keeps."""
    if diagnostics is None:
        return {}, {}
    state = diagnostics.state_dict()
    tensors = {f"drift.part.{at:09d}": part for at, part in enumerate(state["parts"])}
    for at, (_, embeddings, affine) in enumerate(state["snapshots"]):
        tensors[f"drift.embeddings.{at}"] = embeddings
        if affine is not None:
            tensors[f"drift.map.{at}"] = affine
    steps = [snapshot[0] for snapshot in state["snapshots"]]
    return tensors, {"records": state["records"], "warnings": state["warnings"], "steps": steps}


def restore_diagnostics(
    diagnostics: DriftDiagnostics | None, tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device
) -> None:
    """Undo `diagnostics_state`."""
    if diagnostics is None or not values:
        return
    own = {name: value.to(device) for name, value in tensors.items() if name.startswith("drift.")}
    diagnostics.load_state_dict(
        {
            "records": values["records"],
            "warnings": values["warnings"],
            "parts": [own[name] for name in sorted(own) if name.startswith("drift.part.")],
            "snapshots": [
                (step, own[f"drift.embeddings.{at}"], own.get(f"drift.map.{at}"))
                for at, step in enumerate(values["steps"])
            ],
        }
    )
