"""One configuration trained with several seeds: the figure that may be quoted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.study import summarise
from longview.files import write_json
from longview.training.config import RunConfig
from longview.training.progress import TrainingProgress
from longview.training.run import train
from longview.training.rundir import read_json


def run_study(
    config: RunConfig,
    data: PreparedData,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    command: str,
    device: str | torch.device = "cpu",
    progress: TrainingProgress | None = None,
) -> dict[str, Any]:
    """Train `config` once a seed under `out/seed-N`, and return what `evaluation.study.summarise` makes of the runs.

    A study that was cut short goes on where it stopped: finished seeds are read, an unfinished one is resumed.

    Args:
        config: its `loop.seed` is replaced by each of `seeds`.
        data: the data set.
        out: the runs go to `out/seed-N`, the summary to `out/study.json`.
        seeds: at least one; three to quote a figure.
        command: what makes this study from a clean clone; recorded.
        device: where to train.
        progress: what to show; a fresh display a seed is the caller's choice.

    Raises:
        InputError: no seeds, a seed twice, or runs in `out` of another configuration or data set.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)}: give each seed once, and at least one")
    out = Path(out)
    runs = []
    for seed in seeds:
        directory = out / f"seed-{seed}"
        chosen = config.model_copy(update={"loop": config.loop.model_copy(update={"seed": seed})})
        if not _finished(directory, chosen, data):
            resume = (directory / "config.json").exists()
            train(chosen, data, directory, device=device, resume=resume, progress=progress)
        runs.append(read_json(directory / "result.json"))
    study = summarise(runs, command=command)
    write_json(out / "study.json", study)
    return study


def _finished(directory: Path, config: RunConfig, data: PreparedData) -> bool:
    file = directory / "result.json"
    if not file.exists():
        return False
    result = read_json(file)
    if result["config"] != config.model_dump(mode="json") or result["data"]["fingerprint"] != data.fingerprint:
        raise InputError(
            f"{directory}: holds a run of another configuration or data set; give the study another directory"
        )
    return True
