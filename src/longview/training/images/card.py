"""The result card of a run on images: `result.json` for programs, `card.md` for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from longview.evaluation.markdown import table
from longview.files import atomic_file, write_json
from longview.training.progress import duration

WHY = {"patience": "no better epoch came", "epochs": "all epochs done", "max_minutes": "time was up"}
PICTURES = {
    "curves.png": "Loss and validation by epoch",
    "gallery.png": "Queries and their neighbours",
    "drift.png": "Drift of the memory",
}


def write_image_card(directory: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`, then `card.md` with the pictures that are there, into `directory`, each atomically."""
    write_json(directory / "result.json", result)
    pictures = [f"![{title}]({name})" for name, title in PICTURES.items() if (directory / name).exists()]
    with atomic_file(directory / "card.md") as work:
        work.write_text(render_image_card(result, pictures), encoding="utf-8")


def render_image_card(result: Mapping[str, Any], pictures: list[str]) -> str:
    """Return the card as Markdown."""
    test = result["test"]
    sections = [
        f"# {result['name']} on {test['data']}",
        _summary(result),
        *pictures,
        _comparison(result),
        f"## Protocol\n\n{test['protocol'][0].upper()}{test['protocol'][1:]}. {_selection(result)}\n\n"
        f"- Fingerprint `{test['fingerprint']}`: results compare only where it is the same.\n"
        f"- {test['queries_without_relevant']:,} queries have no other image of their class in the gallery (misses).",
        _drift(result.get("drift")),
        "## Data\n\n" + "\n".join(
            f"- {key.removeprefix('num_')}: {value}" for key, value in result["data"].items() if key != "schema_version"
        ),
        _settings(result),
        _circumstances(result),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(result: Mapping[str, Any]) -> str:
    test = result["test"]
    first = min((name for name in test["metrics"] if name.startswith("recall@")), key=lambda n: int(n[7:]))
    stopped = WHY.get(result["stopped"] or "", result["stopped"] or "")
    return (
        f"**Recall{first[6:]} {_figure(test, first)}, MAP@R {_figure(test, 'map@r')}** on {test['queries']:,} queries "
        f"of {test['classes']:,} classes. Weights of epoch {result['best_epoch']} of {result['epochs']} ({stopped}), "
        f"selected by {result['selected_by']}, in {duration(result['seconds'])}."
    )


def _comparison(result: Mapping[str, Any]) -> str:
    reports = [result["test"], *result["baselines"]]
    columns = list(result["test"]["metrics"])
    rows = [[report["name"], *(_figure(report, column) for column in columns)] for report in reports]
    text = "## On test\n\n" + table(["", *columns], rows)
    if result["test"].get("intervals"):
        classes = result["test"]["class_intervals"]["map@r"]
        text += (
            "\n\nIn brackets: 95 % bootstrap intervals over queries. Over whole classes, which is what other unseen "
            f"classes would move, MAP@R lies in {classes[0]:.4f}–{classes[1]:.4f}."
        )
    return text + "".join(f"\n\n{name} was skipped: {reason}." for name, reason in result["skipped"].items())


def _selection(result: Mapping[str, Any]) -> str:
    validation = result["validation"]
    if validation is None:
        return "All training classes trained, and the last weights were kept."
    return (
        f"The epoch was chosen by {result['selected_by']} among {validation['queries']:,} images of "
        f"{validation['classes']:,} classes that did not train."
    )


def _drift(record: Mapping[str, Any] | None) -> str:
    if not record or not record["by_age"]:
        return ""
    rows = [[f"{row['age']:,}", *(f"{row[key]:.4f}" for key in row if key != "age")] for row in record["by_age"]]
    head = [key.replace("_", " ") for key in record["by_age"][0]]
    memory = record["memory"]
    return (
        f"## Drift of the memory, at step {record['step']:,}\n\n{memory['rows']:,} rows, {memory['mean_age']:.0f} "
        f"steps old on average, {memory['max_age']:,} at most. By age in steps, before and after "
        "correction: 1 − cosine, distance of moments in σ, agreement of gradients with those of fresh rows.\n\n"
        + table(head, rows[:8])
    )


def _settings(result: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(result["config"], sort_keys=False, allow_unicode=True).rstrip()
    return f"## Settings\n\n```yaml\n{text}\n```"


def _circumstances(result: Mapping[str, Any]) -> str:
    facts = {"seed": result["seed"], **result["environment"]}
    lines = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    lines += [f"- note: {note}" for note in result["notes"]]
    return "## Seed, versions, hardware\n\n" + "\n".join(lines)


def _figure(report: Mapping[str, Any], name: str) -> str:
    ends = report.get("intervals", {}).get(name)
    return f"{report['metrics'][name]:.4f}" + (f" ({ends[0]:.4f}–{ends[1]:.4f})" if ends else "")
