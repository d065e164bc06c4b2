"""A picture of where the time of a training step goes, without the kernels of this package and with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import InputError
from longview.evaluation.curves import GRID, INK, MODEL, MUTED
from longview.files import atomic_file

COLOURS = {
    "attention": MODEL,
    "products": "#d9822b",
    "element-wise and other": "#7fa58a",
    "loss": "#b56576",
    "optimiser": "#5b6b7b",
    "idle": "#d5dae0",
}


def draw_steps(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the parts `before` and `steps` of the result of `bench_step` to the PNG file `path`.

    A panel for each length, of its own scale; nanoseconds a token, by family of work, two bars for each mask.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install 'longview[plots]'") from None
    lengths = sorted({row["length"] for row in result["steps"]})
    figure = Figure(figsize=(4.4 * len(lengths), 4.4), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        _panel(axes, result, length)
    handles, families = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, families, loc="outside lower center", ncols=len(families), frameon=False, fontsize=8, labelcolor=INK
    )
    title = f"A training step on one {result['environment']['accelerator']}: nanoseconds a token"
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})


def nanoseconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what a token of a measured step costs, by family of work; nothing where the step did not fit."""
    if "tokens_per_second" not in row:
        return {}
    return {family: share * 1e9 / row["tokens_per_second"] for family, share in row["share_of_step"].items()}


def _panel(axes: Any, result: Mapping[str, Any], length: int) -> None:
    labels, place = [], 0.0
    for mask in dict.fromkeys(row["attention"] for row in result["steps"]):
        for part, name in (("before", "without"), ("steps", "with kernels")):
            found = [row for row in result[part] if (row["length"], row["attention"]) == (length, mask)]
            _bar(axes, place, nanoseconds(found[0]) if found else {})
            labels.append((place, name))
            place += 1.0
        axes.annotate(
            mask, (place - 1.5, -0.08), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9, color=INK
        )
        place += 0.5
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0, labelsize=8)
    axes.set_xticks([at for at, _ in labels], [label for _, label in labels])
    axes.set_ylim(bottom=0, top=1.06 * axes.get_ylim()[1])  # room for the numbers over the bars
    axes.set_title(f"sequences of {length:,} tokens", loc="left", fontsize=10, color=INK)


def _bar(axes: Any, place: float, costs: Mapping[str, float]) -> None:
    bottom = 0.0
    for family, colour in COLOURS.items():
        height = costs.get(family, 0.0)
        axes.bar(place, height, 0.8, bottom=bottom, color=colour, label=family if place == 0 else None)
        bottom += height
    words = f"{bottom:,.0f}" if costs else "does not fit"
    axes.annotate(words, (place, bottom), ha="center", va="bottom", fontsize=8)
