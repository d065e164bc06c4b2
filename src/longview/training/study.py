"""One configuration trained with several seeds: the figure that may be quoted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.drift import drift_of_seeds
from longview.evaluation.impression_report import ImpressionReport
from longview.evaluation.quantised import check_name
from longview.evaluation.study import summarise
from longview.files import write_json
from longview.training.config import RunConfig
from longview.training.goals import make_goal
from longview.training.progress import TrainingProgress
from longview.training.run import train
from longview.training.rundir import load_model, read_json
from longview.training.running import InterruptedRunError


def run_study(
    config: RunConfig,
    data: PreparedData,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    command: str,
    device: str | torch.device = "cpu",
    parallel: int = 1,
    progress: TrainingProgress | None = None,
    tables: Sequence[str] = (),
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
        parallel: runs at a time, each in a process of its own (small models leave most of a GPU idle).
        progress: what to show; a fresh display a seed is the caller's choice.
        tables: quantised item tables (`int8`, `int4`) to evaluate the trained models with, too; what they cost is
            `quantised` of the summary (`evaluation.drift.drift_of_seeds`).

    Raises:
        InputError: no seeds, a seed twice, or runs in `out` of another configuration or data set; tables that do not
            exist, or of models that rank.
        InterruptedRunError: a signal asked to stop; the same study again goes on from the checkpoint.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)}: give each seed once, and at least one")
    _check_tables(config, tables)
    out = Path(out)
    pending = []
    for seed in seeds:
        chosen = config.model_copy(update={"loop": config.loop.model_copy(update={"seed": seed})})
        if not _finished(_directory(out, seed), chosen, data):
            pending.append(chosen)
    if parallel > 1 and len(pending) > 1:
        _train_parallel(pending, data, out, str(device), parallel)
    else:
        for chosen in pending:
            _train(chosen, data, out, device, progress)
    runs = [read_json(_directory(out, seed) / "result.json") for seed in seeds]
    study = summarise(runs, command=command, baselines=_ranking_baselines(config, data))
    if tables:
        models = (load_model(_directory(out, seed), device=device).model for seed in seeds)
        study["quantised"] = drift_of_seeds(models, data, tables, device=device)
    write_json(out / "study.json", study)
    return study


def _check_tables(config: RunConfig, tables: Sequence[str]) -> None:
    for name in tables:
        check_name(name)
    if tables and config.task == "ranking":
        raise InputError(
            "a study's quantised tables are for models that retrieve; for one that ranks candidates, evaluate each "
            "run with `longview evaluate RUN --tables int4`"
        )


def _ranking_baselines(config: RunConfig, data: PreparedData) -> list[ImpressionReport]:
    """Return the baselines on test of a study that ranks: they depend on its tasks, and have no seed."""
    if config.task != "ranking":
        return []
    return [report for part in make_goal(config, data).baselines("test") for report in part.reports]


def _directory(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}"


def _train(
    config: RunConfig, data: PreparedData, out: Path, device: str | torch.device, progress: TrainingProgress | None
) -> None:
    directory = _directory(out, config.loop.seed)
    resume = (directory / "config.json").exists()
    try:
        train(config, data, directory, device=device, resume=resume, progress=progress)
    except InterruptedRunError:
        raise InterruptedRunError(
            f"stopped at seed {config.loop.seed}; its checkpoint is in {directory / 'checkpoint'}. "
            "To go on: the same study again"
        ) from None


def _train_parallel(configs: Sequence[RunConfig], data: PreparedData, out: Path, device: str, parallel: int) -> None:
    if data.path is None:
        raise InputError("a parallel study needs a data set on disk: every process opens it for itself")
    # Spawned, not forked: a forked process cannot use the GPU.
    with ProcessPoolExecutor(parallel, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_train_in_process, config, data.path, out, device) for config in configs]:
            done.result()


def _train_in_process(config: RunConfig, data: Path, out: Path, device: str) -> None:
    _train(config, PreparedData.open(data), out, device, None)


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
