"""The pictures of studies: what each part is worth, and what quality costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.evaluation.curves import GRID, INK, LOSS, MODEL, MUTED, heading, plain
from longview.files import atomic_file

ARMS = (LOSS, MODEL, "#7fa58a", "#a58bb5")
MARKERS = ("o", "s", "^", "D", "v")
AXES = {
    "training_flops": "useful operations of training",
    "request_flops": "useful operations of a request",
    "training_seconds": "measured seconds of training",
    "request_seconds": "measured seconds of a request",
}


def draw_study(path: Path, result: Mapping[str, Any]) -> bool:
    """Draw the result of `longview study ablation` or `scaling` to the PNG file `path`; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        return False
    draw, size = (
        (_draw_scaling, _scaling_size(result)) if result["study"] == "scaling" else (_draw_ablation, _height(result))
    )
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=size, dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    draw(figure, result)
    figure.suptitle(_title(result), x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})
    return True


def _scaling_size(result: Mapping[str, Any]) -> tuple[float, float]:
    return 11.5, 8.6 if _measured(result["points"], "training_seconds") else 5.2


def _title(result: Mapping[str, Any]) -> str:
    data = result["data"]
    kind = "simulated" if data["simulated"] else "real"
    left = "" if result["complete"] else f"; {result['missing_cells']} runs still missing"
    what = "What each part is worth" if result["study"] == "ablation" else "What quality costs"
    return f"{what}: {_metric(result)} on {data['name']} ({kind}, {data['users']:,} users{left})"


def _metric(result: Mapping[str, Any]) -> str:
    return str(result["metric"]).upper()


def _draw_scaling(figure: Any, result: Mapping[str, Any]) -> None:
    """Quality against each compute; a line is one model at one depth, its points are the lengths of history."""
    shown = [axis for axis in AXES if _measured(result["points"], axis)]
    panels = figure.subplots(len(shown) // 2, 2, sharey=True, squeeze=False).ravel()
    for axes, (axis, label) in zip(panels, ((axis, AXES[axis]) for axis in shown), strict=True):
        plain(axes)
        _log_axis(axes)
        _curves(axes, result, axis)
        axes.set_xlabel(label, color=MUTED, fontsize=9.5)
        heading(axes, _ratio_in_words(result, axis))
    for axes in panels[::2]:
        axes.set_ylabel(f"{_metric(result)} on test", color=MUTED, fontsize=9.5)
    _legend(figure, result)


def _measured(points: Sequence[Mapping[str, Any]], axis: str) -> bool:
    """Return whether all points have the compute of `axis`: operations always, times once they were measured."""
    return all(point[axis.split("_")[1]] is not None for point in points)


def _log_axis(axes: Any) -> None:
    """Make the x axis logarithmic, with few numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)


def _curves(axes: Any, result: Mapping[str, Any], axis: str) -> None:
    points, group, name = result["points"], *axis.split("_")[::-1]
    arms, depths = _values(points, "arm"), _values(points, "depth")
    deepest = max(depths)
    for arm in arms:
        for depth in depths:
            line = [p for p in points if (p["arm"], p["depth"]) == (arm, depth)]
            line.sort(key=lambda p: p["length"])
            if not line:
                continue
            colour = ARMS[arms.index(arm) % len(ARMS)]
            x, y = [p[group][name] for p in line], [p["quality"] for p in line]
            shade = 0.45 + 0.55 * (depths.index(depth) + 1) / len(depths)
            axes.plot(
                x, y, color=colour, alpha=shade, linewidth=1.6, marker=MARKERS[depths.index(depth) % len(MARKERS)],
                markersize=6, markeredgecolor="white", markeredgewidth=0.8,
            )  # fmt: skip
            for point, at in zip(line, x, strict=True):
                axes.plot([at, at], point["interval"], color=colour, alpha=0.35 * shade, linewidth=1.2)
            if depth == deepest:
                for point, at in zip(line, x, strict=True):
                    axes.annotate(
                        _short(point["length"]), (at, point["quality"]), (0, 8 if arm == arms[-1] else -13),
                        textcoords="offset points", ha="center", fontsize=8, color=colour,
                    )  # fmt: skip


def _legend(figure: Any, result: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    points = result["points"]
    arms, depths = _values(points, "arm"), _values(points, "depth")
    marks = [Line2D([], [], color=ARMS[n % len(ARMS)], linewidth=2.4, label=arm) for n, arm in enumerate(arms)]
    marks += [
        Line2D(
            [],
            [],
            color=MUTED,
            linewidth=0,
            marker=MARKERS[n % len(MARKERS)],
            label=f"{depth} layer{'s' if depth > 1 else ''}",
        )
        for n, depth in enumerate(depths)
    ]
    figure.legend(
        handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9.5, labelcolor=INK,
        title="a line joins the lengths of history, written at the deepest; bars are 95 % intervals over users and "
        "seeds" + _best_in_words(result) + "\n" + _measured_in_words(result), title_fontsize=9,
    )  # fmt: skip


def _measured_in_words(result: Mapping[str, Any]) -> str:
    """Return what the times were measured on, and a warning where that differs between the points."""
    found = result["measured_on"]
    if not found:
        return "times are not measured yet"
    return "times: " + "; ".join(found) + (" (not comparable with each other)" if len(found) > 1 else "")


def _best_in_words(result: Mapping[str, Any]) -> str:
    best = result.get("best_possible", {})
    if "all" not in best:
        return ""
    shorter = [f"{best[w]:.3f} seeing {_short(int(w))}" for w in sorted((w for w in best if w != "all"), key=int)]
    return f"\nbest possible {best['all']:.3f}" + (f" ({', '.join(shorter)})" if shorter else "")


def _ratio_in_words(result: Mapping[str, Any], axis: str) -> str:
    """Return the slope ratio along an axis, or what the panel shows where there is none."""
    what = {"flops": "operations", "seconds": "measured time"}[axis.split("_")[1]]
    shown = f"{axis.split('_')[0].capitalize()}, {what}"
    ratios = result.get("ratios")
    found = ratios["slope_ratio"].get(axis) if ratios else None
    if ratios is None or not found or found["ratio"] is None:
        return shown
    low, high = found["interval"]
    ends = "interval has no end" if low is None else f"{low:.1f} to {high:.1f}"
    return f"{shown}\nslope ratio {ratios['second']} / {ratios['first']}: {found['ratio']:.2f} ({ends})"


def _draw_ablation(figure: Any, result: Mapping[str, Any]) -> None:
    """One line a variant: its quality less the reference's, and its costs over the reference's."""
    rows = [row for row in result["rows"] if row["part"] != "reference"]
    worth, operations, times = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
    places = _places(rows)
    for axes in (worth, operations, times):
        plain(axes)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.spines["left"].set_visible(False)
    worth.set_yticks(list(places.values()), [row["variant"] for row in rows], color=INK, fontsize=9)
    worth.set_ylim(max(places.values(), default=0) + 0.8, -1.2)
    _part_names(worth, rows, places)
    _differences(worth, rows, places)
    figure.text(0.012, 0.004, _measured_in_words(result), fontsize=8.5, color=MUTED)
    heading(worth, f"{_metric(result)} less that of the reference\n({_reference(result)}), 95 % intervals")
    for axes, group, text in ((operations, "flops", "Useful operations"), (times, "seconds", "Measured time")):
        _costs(axes, rows, places, group)
        heading(axes, f"{text}, as multiples\nof the reference's")


def _differences(axes: Any, rows: Sequence[Mapping[str, Any]], places: Mapping[int, float]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1)
    for number, row in enumerate(rows):
        value, (low, high) = row.get("difference", 0.0), row.get("difference_interval", (None, None))
        same = row.get("is_reference", False)
        clear = low is not None and (low > 0 or high < 0)
        colour = MUTED if same else MODEL if clear and value > 0 else LOSS if clear else INK
        if low is not None and not same:
            axes.plot([low, high], [places[number]] * 2, color=colour, linewidth=1.6, alpha=0.6)
        axes.plot(value, places[number], "o", color=colour, markersize=6, markerfacecolor="white" if same else colour)


def _costs(axes: Any, rows: Sequence[Mapping[str, Any]], places: Mapping[int, float], group: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set_xscale("log")
    found = []
    for number, row in enumerate(rows):
        relative = row.get("relative", {}).get(group, {})
        for name, fill, aside in (("training", MODEL, -0.14), ("request", "white", 0.14)):
            if name in relative:
                axes.plot(relative[name], places[number] + aside, "D", color=MODEL, markersize=5, markerfacecolor=fill)
                found.append(relative[name])
    low, high = min([0.7, *found]) / 1.15, max([1.5, *found]) * 1.15
    axes.set_xlim(low, high)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel("◆ training   ◇ request", color=MODEL, fontsize=9.5)


def _part_names(axes: Any, rows: Sequence[Mapping[str, Any]], places: Mapping[int, float]) -> None:
    """Write the name of each part above its variants."""
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row["part"] not in seen:
            seen.add(row["part"])
            axes.annotate(
                row["part"], (0, places[number] - 0.72), (-6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", fontsize=9.5, color=MODEL, fontweight="bold",
                annotation_clip=False,
            )  # fmt: skip


def _places(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return where each row stands: one below the other, with a gap between parts for their names."""
    found, at, part = {}, 0.0, None
    for number, row in enumerate(rows):
        at += 0.0 if part is None else 1.0 if row["part"] == part else 1.9
        part = row["part"]
        found[number] = at
    return found


def _height(result: Mapping[str, Any]) -> tuple[float, float]:
    places = _places([row for row in result["rows"] if row["part"] != "reference"])
    return 12.5, 2.0 + 0.27 * (max(places.values(), default=0) + 2)


def _reference(result: Mapping[str, Any]) -> str:
    found = [row["quality"] for row in result["rows"] if row["part"] == "reference"]
    return f"{found[0]:.4f}" if found else "not there yet"


def _values(points: Sequence[Mapping[str, Any]], label: str) -> list[Any]:
    found = list(dict.fromkeys(point[label] for point in points))
    return found if label == "arm" else sorted(found)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"
