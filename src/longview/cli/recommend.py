"""`longview recommend`: what to show to whom."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.output import emit_json, emit_table, note
from longview.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def recommend_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    user: Annotated[
        list[str] | None, typer.Option("--user", metavar="ID", help="External user id; may be given several times.")
    ] = None,
    sequence: Annotated[
        list[str] | None,
        typer.Option("--sequence", metavar='"ID,ID,…"', help="Item ids, oldest first, of anybody; may be repeated."),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user of the data set.")] = False,
    k: Annotated[int, typer.Option("-k", help="Items for each.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also what is in the history.")] = False,
    allow: Annotated[Path | None, typer.Option(help="File of item ids, one a line: recommend only these.")] = None,
    deny: Annotated[Path | None, typer.Option(help="File of item ids, one a line: never recommend these.")] = None,
    max_per_category: Annotated[int | None, typer.Option(help="At most so many items of one category.")] = None,
    category: Annotated[str, typer.Option(help="Column of the item table that holds the category.")] = "category",
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Parquet file.")] = None,
) -> None:
    """Recommend items to known users, or to anybody by a sequence of item ids.

    Prints user, item, score, rank and title: aligned on a terminal, tab-separated in a pipe.
    """
    if sum([bool(user), bool(sequence), all_users]) != 1:
        raise InputError('give one of --user ID, --sequence "ID,ID,…" and --all-users')
    from longview.serving.recommender import Recommender

    table = Recommender.load(run, data=data, device=device).recommend(
        users=user or None,
        sequences=[split_ids(text) for text in sequence] if sequence else None,
        k=k,
        include_seen=include_seen,
        allow=allow,
        deny=deny,
        max_per_category=max_per_category,
        category=category,
    )
    write_files(table, csv_file, parquet)
    if json:
        emit_json(table.to_pylist())
    elif csv_file is None and parquet is None:
        emit_table(table)


def split_ids(text: str) -> list[str]:
    """Return the ids of a comma-separated list; an id in double quotes may contain commas and quotes (doubled)."""
    return [field.strip() for field in next(csv.reader([text], skipinitialspace=True), []) if field.strip()]


def write_files(table: pa.Table, csv_file: Path | None, parquet: Path | None) -> None:
    """Write the table where asked, atomically, and say so on stderr."""
    from longview.files import atomic_file

    if csv_file is not None:
        import pyarrow.csv as pa_csv

        with atomic_file(csv_file) as work:
            pa_csv.write_csv(table, work)
    if parquet is not None:
        import pyarrow.parquet as pq

        with atomic_file(parquet) as work:
            pq.write_table(table, work)
    for path in (csv_file, parquet):
        if path is not None:
            note(f"{table.num_rows:,} rows written to {path}")
