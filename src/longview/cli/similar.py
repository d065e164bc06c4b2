"""`longview similar`: the items nearest to an item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.output import emit_json, emit_table


def similar_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    item: Annotated[list[str], typer.Option("--item", metavar="ID", help="External item id; may be repeated.")],
    k: Annotated[int, typer.Option("-k", help="Items for each.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the items nearest to an item, by the cosine of what the model learned of them."""
    from longview.serving.recommender import Recommender

    table = Recommender.load(run).similar_items(item, k)
    if json:
        emit_json(table.to_pylist())
    else:
        emit_table(table)
