"""What commands print: people's text, tables, one JSON document, and notes on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pyarrow as pa

FOLDED = 16  # characters of a text column that folds where a terminal is narrow
GAP = 2  # between columns


def note(text: str, colour: str | None = None) -> None:
    """Print a line on stderr; coloured up to its first colon, on a terminal."""
    head, colon, rest = text.partition(":")
    typer.echo((typer.style(head + colon, fg=colour, bold=True) if colour and colon else head + colon) + rest, err=True)


def note_skipped(skipped: Mapping[str, str]) -> None:
    """Name the first few images that were left out, and why."""
    from longview.data.images.listing import some

    if skipped:
        note(f"skipped: {some(f'{key} ({reason})' for key, reason in skipped.items())}")


def say(text: str = "") -> None:
    """Print a line for people on stdout."""
    typer.echo(text)


def emit_json(value: Any) -> None:
    """Print `value` as the one JSON document of this command. Infinite and undefined numbers become null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def emit_table(table: pa.Table, *, aligned: bool = False) -> None:
    """Print a table: aligned on a terminal or where `aligned`, else tab-separated with a heading (for cut, awk, …)."""
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    if sys.stdout.isatty() or aligned:
        _print_aligned(table.column_names, rows, numbers=[_is_number(table, name) for name in table.column_names])
        return
    say("\t".join(table.column_names))
    for row in rows:
        say("\t".join(" ".join(cell.split()) for cell in row))


def _print_aligned(heads: list[str], rows: list[list[str]], numbers: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [[head, *(row[place] for row in rows)] for place, head in enumerate(heads)]
    pretty = Table(box=None, pad_edge=False, header_style="bold")
    for head, cells, number in zip(heads, columns, numbers, strict=True):
        pretty.add_column(
            head, justify="right" if number else "left", overflow="fold", no_wrap=number,
            min_width=_needed(cells, number),
        )  # fmt: skip
    for row in rows:
        pretty.add_row(*row)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)
    # Where the terminal is too narrow even for folded text, let it wrap lines: rich would drop columns.
    needed = sum(_needed(column, number) for column, number in zip(columns, numbers, strict=True)) + GAP * len(heads)
    console.width = max(console.width, needed)
    console.print(pretty)


def _needed(cells: list[str], number: bool) -> int:
    """Return the columns of a terminal that a column needs: all of a number, enough of a text to be read folded."""
    longest = max(len(cell) for cell in cells)
    return longest if number else min(longest, FOLDED)


def _is_number(table: pa.Table, name: str) -> bool:
    import pyarrow as pa

    kind = table[name].type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
