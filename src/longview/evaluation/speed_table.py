"""The tables of speed and memory, made from `results/`: all rows for the docs, the main ones for the README."""

from __future__ import annotations

import json
from pathlib import Path

from longview.evaluation.speed_rows import ROWS, Result

HEAD = "| what | Longview | beside it, in the same run | from |\n|---|---|---|---|"


def speed_table(results: Path, *, main: bool = False, link: str = "results") -> str:
    """Return Markdown: a table for each machine that benchmark files in `results` ran on.

    With `main` only the rows that stand for the rest; without, the commands too. `link` leads to the results from the
    page that the table is for.
    """
    rows: dict[str, list[str]] = {}
    commands: dict[str, list[str]] = {}
    for path in sorted(Path(results).glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        rows_of = ROWS.get(value.get("benchmark", "")) if isinstance(value, dict) else None
        if rows_of is None:
            continue
        machine, source = _machine(value["environment"]), f"[{path.name}]({link}/{path.name})"
        found = [
            f"| {row.what} | **{row.ours}** | {row.beside} | {source} |"
            for row in rows_of(value)
            if row.main or not main
        ]
        if found:
            rows.setdefault(machine, []).extend(found)
        commands.setdefault(machine, []).append(f"`{value['command']}`" if "command" in value else source)
    if not rows:
        return "_No measurements yet._"
    made = {} if main else {machine: ["", f"Made by {', '.join(found)}."] for machine, found in commands.items()}
    return "\n\n".join(
        "\n".join([f"**{machine}**", "", HEAD, *lines, *made.get(machine, [])]) for machine, lines in rows.items()
    )


def _machine(environment: Result) -> str:
    processor = f"{environment['processor']}, {environment['threads']} threads"
    gpu = environment.get("accelerator")
    versions = f"Python {environment['python']}, torch {environment['torch']}"
    return f"{gpu}, {versions}, Triton {environment['triton']}" if gpu else f"{processor}, {versions}"
