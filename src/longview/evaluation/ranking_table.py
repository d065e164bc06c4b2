"""The README's table of a ranking study: the model's mean over seeds beside the baselines, made from `results/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longview.evaluation.impression_report import leading_metric, shown_metrics
from longview.evaluation.markdown import table
from longview.evaluation.ranking_card import label


def ranking_table(study: Mapping[str, Any]) -> str:
    """Return the Markdown of one study (`longview.evaluation.study`) whose runs rank candidates, with its note."""
    columns = shown_metrics([study["mean"], *(b["metrics"] for b in study.get("baselines", []))])
    first = leading_metric(study["mean"])
    rows = [(b["metrics"].get(first, float("inf")), _baseline(b, columns)) for b in study.get("baselines", [])]
    rows.append((study["mean"].get(first, float("inf")), _model(study, columns)))
    lines = table(["model", *map(label, columns), "seeds"], [row for _, row in sorted(rows, key=lambda pair: pair[0])])
    source = f"[{study['path']}](results/{study['path']}): `{study['command']}`"
    return (
        f"**{study['dataset']}, {study['split']}: ranking candidates**\n\n{lines}\n\n"
        f"Impressions `{study['impressions']}`. Mean ± standard deviation over seeds; selected on validation, test "
        f"read once a run. NE, ECE and MAE: lower is better. From {source}."
    )


def _model(study: Mapping[str, Any], columns: list[str]) -> list[str]:
    count = len(study["seeds"])
    cells = [_cell(study["mean"], name) for name in columns]
    if count > 1:
        cells = [f"{cell} ± {study['std'][name]:.4f}" for cell, name in zip(cells, columns, strict=True)]
    return [f"**{study['name']}**", *(f"**{cell}**" for cell in cells), str(count)]


def _baseline(baseline: Mapping[str, Any], columns: list[str]) -> list[str]:
    return [baseline["name"], *(_cell(baseline["metrics"], name) for name in columns), "–"]


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "–"
