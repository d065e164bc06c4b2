"""`longview study`: one configuration with several seeds, an ablation or a scaling study; one result file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.output import say
from longview.cli.study_grid import Grid, Runs, run_grid

if TYPE_CHECKING:
    from longview.data.dataset import PreparedData


SHOWN = ("hr@10", "ndcg@10", "ne", "auc", "gauc")


GRIDS = ("ablation", "scaling")
METRIC = "metric-learning"  # a grid of its own, on images


def study_command(
    config: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE.yaml|ablation|scaling|metric-learning",
            help="Preset or file, for example configs/x.yaml; or a grid.",
        ),
    ],
    json: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the summary goes.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Directory written by `longview prepare`; a grid may name its own."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the runs; finished ones are not repeated.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas. [default: 0,1,2, or those of the grid]")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    parallel: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.")] = 1,
    tables: Annotated[
        str | None, typer.Option(metavar="int8,int4", help="Also evaluate with quantised item tables: their drift.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Of a grid: the study. [default: configs/study-ablation.yaml, …]")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Of a grid: stop after so many; the same command goes on.")
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Of a grid: only summarise and draw what is there.")] = False,
) -> None:
    """Train once a seed and write mean and standard deviation of every metric. Interrupted studies go on.

    With `baselines` in place of a configuration: popularity, item-kNN and EASE, which have no seed. With `ablation` or
    `scaling`: a grid of configurations, with costs in operations and time, intervals and a picture beside the JSON.
    With `metric-learning`: drift policies by batch and memory size on images, on all GPUs.
    """
    # What --draw draws was made by the same command without it.
    command = " ".join(["longview", *(word for word in sys.argv[1:] if word != "--draw")])
    names = () if tables is None else tuple(tables.split(","))
    runs = Runs(data, json, out, _seeds(seeds), set_ or [], device, parallel, names, command)
    if config in (*GRIDS, METRIC, "baselines"):
        _refuse(f"one configuration, not for `longview study {config}`", tables=tables)
    if config == METRIC:
        from longview.cli.study_metric import run_metric_study

        run_metric_study(runs, grid, max_minutes, draw)
        return
    if config in GRIDS:
        _grid(config, runs, grid, max_minutes, draw)
        return
    _refuse(
        "`longview study ablation`, `scaling` and `metric-learning`",
        grid=grid,
        max_minutes=max_minutes,
        draw=draw or None,
    )
    _repeat(config, runs)


def _repeat(config: str, runs: Runs) -> None:
    """Train one configuration once a seed, or fit the baselines."""
    from rich.console import Console

    from longview.data.dataset import PreparedData
    from longview.errors import InputError
    from longview.files import write_json
    from longview.training.config import resolve_config
    from longview.training.progress import make_progress
    from longview.training.study import run_study

    if runs.data is None:
        raise InputError("a study of one configuration needs DATA, the directory of a prepared data set")
    if config == "baselines":
        _baselines(PreparedData.open(runs.data), runs.json, runs.command)
        return
    if runs.out is None:
        raise InputError("a study needs --out, the directory of its runs")
    seeds = runs.seeds or [0, 1, 2]
    summary = run_study(
        resolve_config(config, runs.settings),
        PreparedData.open(runs.data),
        runs.out,
        seeds=seeds,
        command=runs.command,
        device=runs.device,
        parallel=runs.parallel,
        tables=runs.tables,
        progress=make_progress(Console(stderr=True)) if runs.parallel == 1 else None,
    )
    write_json(runs.json, summary)
    for name in [n for n in SHOWN if n in summary["mean"]] or list(summary["mean"]):
        say(f"{name}: {summary['mean'][name]:.4f} ± {summary['std'][name]:.4f} over {len(seeds)} seeds")
    _say_drift(summary.get("quantised", []))
    for other in summary.get("baselines", []):
        shown = ", ".join(f"{n} {other['metrics'][n]:.4f}" for n in SHOWN if n in other["metrics"])
        say(f"beside it, {other['name']}: {shown}")
    say(f"Written to {runs.json}")


def _say_drift(quantised: list[dict[str, Any]]) -> None:
    for small in quantised:
        for name, moved in small["metrics"].items():
            if moved["interval"] is not None:
                low, high = moved["interval"]
                say(f"{small['tables']} tables, {name}: {moved['relative']:+.2%}, interval {low:+.2%} to {high:+.2%}")


def _grid(kind: str, runs: Runs, grid: Path | None, max_minutes: float | None, draw: bool) -> None:
    """Run an ablation or a scaling study as far as the time goes, and write and draw what is there."""
    from longview.errors import InputError
    from longview.evaluation.study_plots import draw_study
    from longview.training.studies import load_study, run_cells, summary

    file = grid or Path("configs") / f"study-{kind}.yaml"
    study = load_study(file, runs.settings, runs.seeds)
    if study.kind != kind:
        raise InputError(f"{file}: is a study of kind {study.kind}; run `longview study {study.kind}` with it")

    def drawn(json: Path, result: dict[str, Any]) -> list[Path]:
        picture = json.with_suffix(".png")
        return [picture] if draw_study(picture, result) else []

    tell = _say_ablation if kind == "ablation" else _say_scaling
    run_grid(Grid(study, run_cells, summary, drawn, tell), runs, max_minutes, draw)


def _say_ablation(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        name = row["part"] if row["part"] == row["variant"] else f"{row['part']}, {row['variant']}"
        costs = row.get("relative", {}).get("flops", {})
        more = f", operations ×{costs['training']:.2f} and ×{costs['request']:.2f} a request" if costs else ""
        say(f"{name}: {result['metric']} {row['quality']:.4f} ± {row['std']:.4f}{more}")


def _say_scaling(result: dict[str, Any]) -> None:
    for point in result["points"]:
        where = f"{point['arm']}, {point['length']:,} events, {point['depth']} layers"
        costs = f"{point['flops']['training']:.3g} operations of training, {point['flops']['request']:.3g} of a request"
        say(f"{where}: {result['metric']} {point['quality']:.4f} ± {point['std']:.4f}; {costs}")
    for kind, by_axis in (result["ratios"] or {}).items():
        if kind in ("slope_ratio", "exponent_ratio"):
            for axis, found in by_axis.items():
                if found is not None and found["ratio"] is not None:
                    say(f"{kind} along {axis}: {found['ratio']:.2f}, 95 % interval {_ends(found['interval'])}")
    kept = result["ratios"]["kept_at_longest"] if result["ratios"] else None
    if kept is not None and kept["share"] is not None:
        share = f"{kept['share']:.3f}, 95 % interval {_ends(kept['interval'])}"
        say(f"share of quality kept at {kept['length']:,} events: {share}")


def _ends(interval: list[float | None]) -> str:
    low, high = interval
    return "without ends" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _seeds(text: str | None) -> list[int] | None:
    from longview.errors import InputError

    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r}: expected numbers separated by commas, for example 0,1,2") from None


def _refuse(what_for: str, **given: object) -> None:
    from longview.errors import InputError

    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is for {what_for}")


def _baselines(data: PreparedData, json: Path, command: str) -> None:
    from longview.evaluation.study import baseline_studies
    from longview.files import write_json

    studies = baseline_studies(data, command=command)
    write_json(json, studies)
    for study in studies:
        say(f"{study['name']}: hr@10 {study['mean']['hr@10']:.4f}, ndcg@10 {study['mean']['ndcg@10']:.4f}")
    say(f"Written to {json}")
