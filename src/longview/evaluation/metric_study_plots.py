"""The pictures of a study of metric learning: where each policy wins or loses, and how stale rows are."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.evaluation.curves import INK, LOSS, MODEL, MUTED, heading, plain
from longview.evaluation.metric_study import difference
from longview.files import atomic_file

COLOURS = (MODEL, LOSS, "#7fa58a", "#a58bb5", "#c2a25c", "#5b6770", "#b5523b", "#3b8c84", "#c77fa8")
METRIC, NAME = "recall@1", "Recall@1"


def draw_metric_study(json: Path, result: Mapping[str, Any]) -> list[Path]:
    """Draw the result of `longview study metric-learning` beside its file `json`; return what was drawn.

    `NAME.png` maps the difference of each policy to the reference, by batch and memory; `NAME-drift.png` the drift of
    the probe by age, before and after correction. Nothing is drawn without matplotlib.
    """
    drawn = []
    for path, draw, size in (
        (json.with_suffix(".png"), _draw_map, _map_size(result)),
        (json.with_name(f"{json.stem}-drift.png"), _draw_drift, (11.5, 7.2)),
    ):
        if _figure(path, draw, size, result):
            drawn.append(path)
    return drawn


def _figure(path: Path, draw: Any, size: tuple[float, float], result: Mapping[str, Any]) -> bool:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        return False
    figure = Figure(figsize=size, dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1), facecolor="white")
    FigureCanvasAgg(figure)
    if not draw(figure, result):
        return False
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})
    return True


def _draw_map(figure: Any, result: Mapping[str, Any]) -> bool:
    """One panel a batch size (or regime): the difference to the reference of each policy at each size of the memory."""
    reference, rows = result["reference"], result["rows"]
    panels = _distinct((row["regime"], row["batch"]) for row in rows)
    every = _distinct(row["policy"] for row in rows)
    policies = {name: _colour(every, name) for name in every if name != reference}
    memories = sorted({row["memory"] for row in rows if row["memory"] is not None})
    if not policies or not memories:
        return False
    columns = min(4, len(panels))
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True).ravel()
    for panel, place in zip(axes, panels, strict=False):
        here = [row for row in rows if (row["regime"], row["batch"]) == place]
        _differences(panel, here, policies, memories, reference)
        heading(panel, _place_in_words(place, panels))
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    for first in axes[::columns]:
        first.set_ylabel(f"{NAME} less that of {reference}", color=MUTED, fontsize=9.5)
    _legend(figure, policies, f"{NAME} on {result['data']['unseen_classes']} unseen classes of "
            f"{result['data']['name']}, {_seeds(result)}; bars: 95 % intervals of the paired difference;\n"
            "filled where the intervals of the two means do not overlap")  # fmt: skip
    return True


def _seeds(result: Mapping[str, Any]) -> str:
    """Return how many seeds the rows have: of a study that was stopped, some have fewer."""
    found = sorted({len(row["seeds"]) for row in result["rows"]})
    return f"{found[0]} to {found[-1]} seeds" if found[0] < found[-1] else f"{found[-1]} seed{'s' * (found[-1] > 1)}"


def _differences(
    panel: Any,
    rows: Sequence[Mapping[str, Any]],
    policies: Mapping[str, str],
    memories: Sequence[float],
    reference: str,
) -> None:
    plain(panel)
    panel.axhline(0, color=MUTED, linewidth=1)
    step = 0.8 / len(policies)
    for place, (policy, colour) in enumerate(policies.items()):
        for at, memory in enumerate(memories):
            row = _found(rows, policy, memory)
            base = _found(rows, reference, memory)
            if row is None or base is None:
                continue
            one = difference(row, base, METRIC)
            x = at - 0.4 + step * (place + 0.5)
            if one["difference_interval"] is not None:
                panel.plot([x, x], one["difference_interval"], color=colour, linewidth=1.5, alpha=0.7)
            fill = colour if one["verdict"] in ("better", "worse") else "white"
            panel.plot(x, one["difference"], "o", color=colour, markersize=5, markerfacecolor=fill)
    panel.set_xticks(range(len(memories)), [f"{memory:.0%}" for memory in memories])
    panel.set_xlabel("memory, share of the training images", color=MUTED, fontsize=9)


def _draw_drift(figure: Any, result: Mapping[str, Any]) -> bool:
    """Drift, moments and agreement by age in the largest memory, one column a batch size or regime."""
    rows = [row for row in result["rows"] if row["memory"] is not None and row["drift"] and row["drift"][-1]["by_age"]]
    if not rows:
        return False
    panels = _distinct((row["regime"], row["batch"]) for row in rows)[:6]
    every = _distinct(row["policy"] for row in result["rows"])
    policies = {name: _colour(every, name) for name in _distinct(row["policy"] for row in rows)}
    kinds = {"cosine": "1 − cos(then, now)", "agreement": "agreement of gradients"}
    axes = figure.subplots(len(kinds), len(panels), squeeze=False, sharex=True, sharey="row")
    for column, place in enumerate(panels):
        here = [row for row in rows if (row["regime"], row["batch"]) == place]
        largest = max(row["memory"] for row in here)
        for line, (key, label) in enumerate(kinds.items()):
            panel = axes[line, column]
            plain(panel)
            panel.set_xscale("log")
            panel.tick_params(which="both", length=0)
            for row in (row for row in here if row["memory"] == largest):
                _curve(panel, row, key, policies[row["policy"]])
            if not line:
                heading(panel, _place_in_words(place, panels))
            if not column:
                panel.set_ylabel(label, color=MUTED, fontsize=9.5)
        axes[-1, column].set_xlabel("age in steps", color=MUTED, fontsize=9)
    first = rows[0]["drift"]
    _legend(figure, policies, f"a probe of training images at step {first[len(first) // 2]['step']:,} of "
            f"{result['steps']:,}, as it is after the policy's correction; dotted: without it")  # fmt: skip
    return True


def _curve(panel: Any, row: Mapping[str, Any], key: str, colour: str) -> None:
    look = row["drift"][len(row["drift"]) // 2]
    ages = [at["age"] for at in look["by_age"]]
    for name, style in (("before", ":"), ("after", "-")):
        panel.plot(ages, [at[f"{key}_{name}"] for at in look["by_age"]], style, color=colour, linewidth=1.4)


def _legend(figure: Any, policies: Mapping[str, str], title: str) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=colour, linewidth=2.4, label=policy) for policy, colour in policies.items()]
    room = int(13 * figure.get_figwidth())  # letters of this size
    title = "\n".join(textwrap.fill(line, room) for line in title.splitlines())
    lines = -(-sum(len(policy) + 9 for policy in policies) // room)  # nine letters' room for a mark and its gaps
    figure.legend(
        handles=marks, loc="outside lower center", ncols=-(-len(marks) // lines), frameon=False, fontsize=9,
        labelcolor=INK, title=title, title_fontsize=9,
    )  # fmt: skip


def _found(rows: Sequence[Mapping[str, Any]], policy: str, memory: float) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["policy"] == policy and row["memory"] in (memory, None)), None)


def _place_in_words(place: tuple[str, int], panels: Sequence[tuple[str, int]]) -> str:
    parts = (place[0], f"batch {place[1]}")
    told = [
        part for part, all_of_them in zip(parts, zip(*panels, strict=True), strict=True) if len(set(all_of_them)) > 1
    ]
    return ", ".join(told) or parts[1]


def _colour(policies: Sequence[str], name: str) -> str:
    return COLOURS[policies.index(name) % len(COLOURS)]


def _map_size(result: Mapping[str, Any]) -> tuple[float, float]:
    panels = len(_distinct((row["regime"], row["batch"]) for row in result["rows"]))
    return 3.4 * min(4, panels) + 0.8, 3.1 * -(-panels // 4) + 1.0


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
