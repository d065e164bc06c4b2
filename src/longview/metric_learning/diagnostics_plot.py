"""The picture of a run's memory: drift by age, moments, agreement, and the filter over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import InputError
from longview.files import atomic_file

BEFORE, AFTER, INK, GRID = "#d9822b", "#2f6fa8", "#3b4450", "#e4e7eb"


def draw_drift(path: Path, report: Mapping[str, Any]) -> None:
    """Draw the report of a `DriftDiagnostics` to the PNG file `path`.

    Drift, distance of moments and agreement of gradients by age, at the last record and before and after correction;
    over the run, the share of the loss that comes from the memory and the filter's gain.

    Raises:
        InputError: matplotlib is not installed, or no record has an earlier one to compare with.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise InputError("the picture needs matplotlib: pip install 'longview[plots]'") from None
    records = [record for record in report["records"] if record["by_age"]]
    if not records:
        raise InputError("no two records to compare: run for more steps, or record more often (every)")
    figure = Figure(figsize=(13, 3.4), dpi=130, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    last = records[-1]
    titles = {
        "cosine": "Drift by age: 1 − cos(then, now)",
        "moments": "Distance of moments by age, in σ",
        "agreement": "Agreement of gradients by age",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=False):
        for name, colour in (("before", BEFORE), ("after", AFTER)):
            ages, values = zip(*((row["age"], row[f"{key}_{name}"]) for row in last["by_age"]), strict=True)
            panel.plot(ages, values, color=colour, marker="o", markersize=3, label=f"{name} correction")
        panel.set_xlim(left=0)
        drawn = [row[f"{key}_{name}"] for name in ("before", "after") for row in last["by_age"]]
        panel.set_ylim(min(0.0, *drawn), 1.02 if key == "agreement" else 1.1 * max(*drawn, 1e-6))
        panel.axvline(
            last["memory"]["mean_age"], color=INK, linewidth=0.8, linestyle=":", label="mean age of the memory"
        )
        _finish(panel, title, f"age in steps, at step {last['step']}")
    steps = [record["step"] for record in report["records"]]
    shares = [record["share_of_loss_from_memory"] for record in report["records"]]
    panels[3].plot(
        steps,
        [float("nan") if share is None else share for share in shares],
        color=INK,
        marker="o",
        markersize=3,
        label="loss share",
    )
    panels[3].plot(
        steps,
        [record["gain"]["mean"] for record in report["records"]],
        color=AFTER,
        marker="o",
        markersize=3,
        label="gain, mean",
    )
    gains = [record["gain"]["std"] for record in report["records"]]
    panels[3].plot(steps, gains, color=AFTER, linestyle="--", marker="o", markersize=3, label="gain, std")
    panels[3].set_ylim(0, 1.02)
    _finish(panels[3], "Share of loss from the memory, filter gain", "step")
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _finish(panel: Any, title: str, x: str) -> None:
    panel.set_title(title, fontsize=9, color=INK)
    panel.set_xlabel(x, fontsize=8, color=INK)
    panel.tick_params(labelsize=7, colors=INK)
    panel.grid(color=GRID, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, handlelength=3.5)  # long enough to tell a broken line from a whole one
