"""`longview doctor`: what Longview runs on, what it would use, and why a fast path is off."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longview.cli.output import emit_json, say


def doctor_command(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show device, kernels, versions, optional extras and free space, and why a fast path is off."""
    from longview.cli.diagnosis import diagnose

    found = diagnose()
    if json:
        emit_json(found)
        return
    for title, entries in found.items():
        say(title.replace("_", " "))
        _lines(entries, "  ")


def _lines(entries: Any, indent: str) -> None:
    width = max((len(key) for key, value in entries.items() if not isinstance(value, dict)), default=0)
    for key, value in entries.items():
        if isinstance(value, dict):
            say(f"{indent}{key}")
            _lines(value, indent + "  ")
        else:
            say(f"{indent}{key:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
