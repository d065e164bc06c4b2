"""The picture of a run: how it learned, what it beats, and for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from longview.evaluation.impression_report import lower_is_better
from longview.files import atomic_file

INK, MUTED, GRID = "#1f2933", "#8a94a0", "#e6e9ed"
MODEL, LOSS = "#0b6e99", "#d9822b"
OTHERS = ("#98a2ae", "#c2a25c", "#7fa58a", "#a58bb5")  # one a baseline, the same in both panels

METRIC = "hr@10"


def draw_curves(path: Path, result: Mapping[str, Any]) -> bool:
    """Draw `result` (see `longview.evaluation.card`) to the PNG file `path`; return False without matplotlib.

    Left, training loss and the validation metric by epoch; middle, the model beside its baselines with 95 %
    intervals; right, the same by length of history. What the result does not hold is not drawn.
    """
    reports = [result["test"], *result.get("baselines", [])]
    panels = [learning] if result.get("history") else []
    panels += [_comparison] if len(reports) > 1 else []
    panels += [_by_history] if len(result["test"].get("groups", [])) > 1 else []
    return draw(path, [partial(panel, result=result) for panel in panels], _title(result))


def draw(path: Path, panels: Sequence[Callable[[Any], None]], title: str) -> bool:
    """Draw `panels`, each given its axes, side by side to the PNG file `path`; return False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        return False
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.3), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        plain(axes)
        panel(axes)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})
    return True


def _title(result: Mapping[str, Any]) -> str:
    test = result["test"]
    return f"{result['name']} on {test['data']}: HR@10 {test['metrics'][METRIC]:.4f} on test"


def plain(axes: Any) -> None:
    """Take away what says nothing."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def heading(axes: Any, text: str) -> None:
    """Write what a panel shows above it."""
    axes.set_title(text, loc="left", fontsize=10.5, color=INK, pad=10)


def learning(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw training loss and the validation metric that selected the weights, by epoch."""
    history: Sequence[Mapping[str, Any]] = result["history"]
    metric = str(result.get("selected_by", "validation ndcg@10")).split()[-1]
    seen = [(r["epoch"], r[metric]) for r in history if metric in r]
    dots = {"marker": "o", "markersize": 3} if len(history) < 15 else {}
    axes.plot([r["epoch"] for r in history], [r["loss"] for r in history], color=LOSS, linewidth=1.8, **dots)
    axes.set_ylabel("training loss", color=LOSS, fontsize=9.5)
    axes.set_xlabel("epoch", color=MUTED, fontsize=9.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # of one epoch there is one
    heading(axes, f"Training loss and validation {metric.upper()}")
    if not seen:
        return
    right = axes.twinx()
    plain(right)
    right.grid(visible=False)
    right.plot(*zip(*seen, strict=True), color=MODEL, linewidth=1.8, **dots)
    right.set_ylabel(f"validation {metric.upper()}", color=MODEL, fontsize=9.5)
    best = [pair for pair in seen if pair[0] == result.get("best_epoch")]
    if best:
        right.plot(*best[0], "o", color=MODEL, markersize=7, markeredgecolor="white", markeredgewidth=1.5)
        low, high = right.get_ylim()
        right.set_ylim(low, high + 0.1 * (high - low))
        up = 1 if lower_is_better(metric) else -1  # the best of what should be low is at the bottom
        right.annotate(
            f"best {best[0][1]:.4f}\nepoch {best[0][0]}", best[0], (0, 14 * up), textcoords="offset points",
            ha="right" if best[0][0] == seen[-1][0] else "center", va="bottom" if up > 0 else "top",
            fontsize=9, color=MODEL, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def _comparison(axes: Any, result: Mapping[str, Any]) -> None:
    reports = sorted([result["test"], *result["baselines"]], key=lambda r: r["metrics"][METRIC])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(range(len(reports)), [r["name"] for r in reports])
    paint = colours(result)
    for place, report in enumerate(reports):
        ours, value = report is result["test"], report["metrics"][METRIC]
        axes.barh(place, value, height=0.62, color=paint[report["name"]])
        low, high = report.get("intervals", {}).get(METRIC, (value, value))
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.annotate(
            f"{value:.4f}", (high, place), (6, 0), textcoords="offset points", va="center", fontsize=9.5,
            color=MODEL if ours else INK, fontweight="bold" if ours else "normal",
        )  # fmt: skip
        axes.get_yticklabels()[place].set(color=MODEL if ours else INK, fontweight="bold" if ours else "normal")
    axes.set_xlim(0, 1.2 * max(r.get("intervals", {}).get(METRIC, (0, r["metrics"][METRIC]))[1] for r in reports))
    heading(axes, "HR@10 on test, with 95 % intervals")


def _by_history(axes: Any, result: Mapping[str, Any]) -> None:
    groups = result["test"]["groups"]
    places = {group["from"]: place for place, group in enumerate(groups)}
    paint = colours(result)
    ends = []
    for report in [*result.get("baselines", []), result["test"]]:
        ours, colour = report is result["test"], paint[report["name"]]
        known = [group for group in report.get("groups", []) if group["from"] in places]
        if not known:
            continue
        axes.plot(
            [places[g["from"]] for g in known], [g[METRIC] for g in known], marker="o", color=colour,
            markersize=5 if ours else 3.5, linewidth=2.2 if ours else 1.4,
        )  # fmt: skip
        ends.append((known[-1][METRIC], report["name"], colour))
    _label_ends(axes, ends, len(groups) - 1)
    axes.set_xticks(range(len(groups)), [f"{_range(g)}\n{g['users']:,}" for g in groups])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("events before the target; users", color=MUTED, fontsize=9.5)
    heading(axes, "HR@10 by length of history")


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], place: int) -> None:
    """Write each line's name at its end, moved up where names would run into each other."""
    axes.set_ylim(bottom=0)
    gap, at = 0.06 * axes.get_ylim()[1], -1.0
    for value, name, colour in sorted(ends):
        at = max(value, at + gap)
        axes.annotate(
            name, (place, at), (8, 0), textcoords="offset points", va="center", fontsize=9, color=colour,
            fontweight="bold" if colour == MODEL else "normal", annotation_clip=False,
        )  # fmt: skip


def colours(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of the model and of each baseline, by name."""
    others = {r["name"]: OTHERS[i % len(OTHERS)] for i, r in enumerate(result.get("baselines", []))}
    return others | {result["test"]["name"]: MODEL}


def _range(group: Mapping[str, Any]) -> str:
    if group["to"] is None:
        return f"{group['from']:,}+"
    return f"{group['from']:,}–{group['to']:,}" if group["to"] > group["from"] else f"{group['from']:,}"
