"""The picture of a ranking run: how it learned, what it beats, and whether its probabilities come true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.evaluation.curves import GRID, INK, LOSS, MODEL, MUTED, OTHERS, colours, draw, heading, learning
from longview.evaluation.impression_report import leading_metric
from longview.evaluation.ranking_card import label

LINES = (MODEL, LOSS, *OTHERS)


def draw_ranking(path: Path, result: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
    """Draw the ranking `outcome` of `result` to the PNG file `path`; return False without matplotlib.

    Left, training loss and the validation metric by epoch; middle, the model beside its baselines; right, observed
    rates over predicted probabilities. What the result does not hold is not drawn.
    """
    test = outcome["test"]
    panels = [lambda axes: learning(axes, result)] if result.get("history") else []
    panels += (
        [lambda axes: _comparison(axes, outcome)]
        if outcome.get("baselines") and leading_metric(test["metrics"])
        else []
    )
    panels += [lambda axes: _reliability(axes, test)] if test.get("reliability") else []
    name = leading_metric(test["metrics"])
    title = f"{result['name']} on {test['data']}" + (f": {label(name)} {test['metrics'][name]:.4f}" if name else "")
    return draw(path, panels, title)


def _comparison(axes: Any, outcome: Mapping[str, Any]) -> None:
    name = leading_metric(outcome["test"]["metrics"])
    reports = [r for r in (outcome["test"], *outcome["baselines"]) if name in r["metrics"]]
    reports.sort(key=lambda r: -r["metrics"][name])
    paint = colours(outcome)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(range(len(reports)), [r["name"] for r in reports])
    for place, report in enumerate(reports):
        ours, value = report is outcome["test"], report["metrics"][name]
        low, high = report.get("intervals", {}).get(name, (value, value))
        axes.barh(place, value, height=0.62, color=paint[report["name"]])
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.annotate(
            f"{value:.4f}", (high, place), (6, 0), textcoords="offset points", va="center", fontsize=9.5,
            color=MODEL if ours else INK, fontweight="bold" if ours else "normal",
        )  # fmt: skip
    axes.set_xlim(0, 1.25 * max(r["metrics"][name] for r in reports))
    heading(axes, f"{label(name)} on {outcome['test']['split']}, lower is better")


def _reliability(axes: Any, test: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.5)
    highest = 0.0
    for number, (task, bins) in enumerate(list(test["reliability"].items())[: len(LINES)]):
        predicted, observed = [b[0] for b in bins], [b[1] for b in bins]
        axes.plot(predicted, observed, marker="o", markersize=4, linewidth=1.6, color=LINES[number], label=task)
        highest = max([highest, *predicted, *observed])
    axes.set_xlim(0, min(1.0, 1.05 * highest))
    axes.set_ylim(0, min(1.0, 1.05 * highest))
    axes.set_xlabel("predicted probability", color=MUTED, fontsize=9.5)
    axes.set_ylabel("observed rate", color=MUTED, fontsize=9.5)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    heading(axes, f"Reliability on {test['split']}")
