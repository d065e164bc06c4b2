"""`longview study metric-learning`: drift policies of a memory, by batch and memory size, on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longview.cli.output import say
from longview.cli.study_grid import Grid, Runs, run_grid

DEFAULT = Path("configs") / "study-omniglot.yaml"


def run_metric_study(runs: Runs, grid: Path | None, max_minutes: float | None, draw: bool) -> None:
    """Run the study as far as the time goes, and write and draw what is there."""
    from longview.evaluation.metric_study_plots import draw_metric_study
    from longview.training.studies.metric_config import load_metric_study
    from longview.training.studies.metric_run import metric_study_summary, run_metric_cells

    study = load_metric_study(grid or DEFAULT, runs.settings, runs.seeds)
    run_grid(Grid(study, run_metric_cells, metric_study_summary, draw_metric_study, _say), runs, max_minutes, draw)


def _say(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        memory = "no memory" if row["memory"] is None else f"memory {row['memory']:.0%}"
        recall, average = row["metrics"]["recall@1"], row["metrics"]["map@r"]
        verdict = f"; {recall['verdict']} against {result['reference']}" if "verdict" in recall else ""
        say(
            f"{row['regime']}, batch {row['batch']}, {memory}, {row['policy']}: recall@1 {recall['mean']:.4f}"
            f"{_ends(recall['interval'])}, map@r {average['mean']:.4f}{_ends(average['interval'])}{verdict}"
        )
    for policy, found in result["verdicts"].items():
        counts = ", ".join(f"{name} in {number}" for name, number in found["recall@1"].items())
        say(f"{policy} against {result['reference']}, recall@1: {counts}")


def _ends(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
