"""`longview study`: one configuration, several seeds, one result file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.output import say

if TYPE_CHECKING:
    from longview.data.dataset import PreparedData


SHOWN = ("hr@10", "ndcg@10", "ne", "auc", "gauc")


def study_command(
    config: Annotated[
        str, typer.Argument(metavar="NAME|FILE.yaml", help="Preset or file, for example configs/x.yaml.")
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Directory written by `longview prepare`.")],
    json: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the summary goes.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the runs, one a seed; finished ones are not repeated.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    parallel: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.")] = 1,
) -> None:
    """Train once a seed and write mean and standard deviation of every metric. Interrupted studies go on.

    With `baselines` in place of a configuration: popularity, item-kNN and EASE, which have no seed.
    """
    from rich.console import Console

    from longview.data.dataset import PreparedData
    from longview.errors import InputError
    from longview.files import write_json
    from longview.training.config import resolve_config
    from longview.training.progress import make_progress
    from longview.training.study import run_study

    command = " ".join(["longview", *sys.argv[1:]])
    if config == "baselines":
        _baselines(PreparedData.open(data), json, command)
        return
    if out is None:
        raise InputError("a study needs --out, the directory of its runs")
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {seeds!r}: expected numbers separated by commas, for example 0,1,2") from None
    summary = run_study(
        resolve_config(config, set_ or []),
        PreparedData.open(data),
        out,
        seeds=numbers,
        command=command,
        device=device,
        parallel=parallel,
        progress=make_progress(Console(stderr=True)) if parallel == 1 else None,
    )
    write_json(json, summary)
    for name in [n for n in SHOWN if n in summary["mean"]] or list(summary["mean"]):
        say(f"{name}: {summary['mean'][name]:.4f} ± {summary['std'][name]:.4f} over {len(numbers)} seeds")
    for other in summary.get("baselines", []):
        shown = ", ".join(f"{n} {other['metrics'][n]:.4f}" for n in SHOWN if n in other["metrics"])
        say(f"beside it, {other['name']}: {shown}")
    say(f"Written to {json}")


def _baselines(data: PreparedData, json: Path, command: str) -> None:
    from longview.evaluation.study import baseline_studies
    from longview.files import write_json

    studies = baseline_studies(data, command=command)
    write_json(json, studies)
    for study in studies:
        say(f"{study['name']}: hr@10 {study['mean']['hr@10']:.4f}, ndcg@10 {study['mean']['ndcg@10']:.4f}")
    say(f"Written to {json}")
