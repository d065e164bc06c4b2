"""Pictures of the GPU benchmark of attention: how time grows with length, and what a window saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import InputError
from longview.evaluation.curves import GRID, INK, MODEL, MUTED
from longview.files import atomic_file

COLOURS = {"full causal": "#98a2ae", "prefix 256/128": "#d9822b", "prefix 512/256": MODEL, "prefix 1024/512": "#7fa58a"}
BESIDE = {"Meta's Triton HSTU": "X", "SDPA, causal softmax": "s", "FlexAttention, softmax": "D", "ours": "o"}


def draw_attention(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the result of `bench_attention_gpu` to the PNG file `path`.

    Left, milliseconds of a forward and backward pass over as many tokens at every length; middle, useful TFLOP/s;
    right, how many times faster a window is than full attention.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install 'longview[plots]'") from None
    figure = Figure(figsize=(15, 4.6), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for axes, panel in zip(panels, (_time, _rate, _gain), strict=True):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(GRID)
        axes.tick_params(colors=MUTED, length=0, labelsize=9)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        panel(axes, result)
    tokens, device = result["settings"][0]["tokens"], result["environment"]["accelerator"]
    title = f"Attention on one {device}, {tokens:,} tokens, 4 heads of 128, bfloat16"
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})


def _curves(result: Mapping[str, Any], provider: str) -> dict[str, list[tuple[int, float, float]]]:
    """Return by mask the points (length, milliseconds, TFLOP/s) of forward and backward together."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for one in result["settings"]:
        if one["dim"] != 128 or one["longest"] * one["sequences"] != one["tokens"] or provider not in one["providers"]:
            continue
        row = one["providers"][provider]
        milliseconds = row["forward"]["median_ms"] + row["backward"]["median_ms"]
        work = row["forward"]["tflops"] * row["forward"]["median_ms"] * 3.5
        point = (one["longest"], milliseconds, work / milliseconds)
        found.setdefault(one["name"].partition(",")[0], []).append(point)
    return {mask: sorted(points) for mask, points in found.items()}


def _plot(axes: Any, result: Mapping[str, Any], column: int) -> None:
    for provider, marker in BESIDE.items():
        for mask, points in _curves(result, provider).items():
            mine = provider == "ours"
            axes.plot(
                [p[0] for p in points],
                [p[column] for p in points],
                marker=marker,
                color=COLOURS.get(mask, INK),
                linestyle="-" if mine else ":",
                linewidth=2 if mine else 1.2,
                markersize=6,
                alpha=1 if mine else 0.75,
                label=mask if mine else f"{mask}: {provider}",
            )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens a sequence", color=MUTED)


def _time(axes: Any, result: Mapping[str, Any]) -> None:
    _plot(axes, result, 1)
    axes.set_yscale("log")
    axes.set_title("milliseconds, forward and backward", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=7)


def _rate(axes: Any, result: Mapping[str, Any]) -> None:
    _plot(axes, result, 2)
    axes.set_ylim(bottom=0)
    axes.set_title("useful TFLOP/s, forward and backward", loc="left", fontsize=10, color=INK)


def _gain(axes: Any, result: Mapping[str, Any]) -> None:
    lengths = sorted({row["length"] for row in result["window against full causal"]})
    shades = ("#c9d6df", "#7fb3cc", MODEL, "#084c66")
    for length, colour in zip(lengths, shades, strict=False):
        rows = [row for row in result["window against full causal"] if row["length"] == length]
        keys = [sum(map(int, row["window/prefix"].split("/"))) for row in rows]
        full = [sum(row[kind]["full_causal_ms"] for kind in ("forward", "backward")) for row in rows]
        mine = [sum(row[kind]["median_ms"] for kind in ("forward", "backward")) for row in rows]
        gains = [f / m for f, m in zip(full, mine, strict=True)]
        axes.plot(keys, gains, marker="o", color=colour, linewidth=2, label=f"{length:,} tokens")
    axes.axhline(1, color=MUTED, linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("keys a row sees (window + prefix)", color=MUTED)
    axes.set_title("times faster than full attention", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8)
