"""`longview prepare`: logs, or images, to a prepared data set, and its data card."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.output import emit_json, note, say

if TYPE_CHECKING:
    from rich.table import Table

    from longview.data import PreparedData
    from longview.data.card import DataCard
    from longview.data.encode import Report
    from longview.data.images.meta import ImageCard


def prepare_command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Logs: files, folders, patterns. Images: a folder, zip or table."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    user: Annotated[str | None, typer.Option(help="Column of the user id [guessed].")] = None,
    item: Annotated[str | None, typer.Option(help="Column of the item id [guessed].")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the time [guessed].")] = None,
    order: Annotated[str | None, typer.Option(help="Column that orders events, where there is no time.")] = None,
    action: Annotated[list[str] | None, typer.Option(help="Column of action names, or 0/1 column; repeatable.")] = None,
    strength: Annotated[list[str] | None, typer.Option(help="Column such as a rating; repeatable.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column never guessed to be anything; repeatable.")] = None,
    items: Annotated[Path | None, typer.Option(help="File of item titles, categories and features.")] = None,
    users: Annotated[Path | None, typer.Option(help="File of user features.")] = None,
    title: Annotated[str | None, typer.Option(help="Title column of the item file [guessed].")] = None,
    category: Annotated[str | None, typer.Option(help="Category column of the item file [guessed].")] = None,
    split: Annotated[
        str | None, typer.Option(help="leave-last-out or global-time [global-time where the log has time].")
    ] = None,
    quantile: Annotated[float, typer.Option(help="Share of event times before the test period.")] = 0.9,
    min_user_events: Annotated[int, typer.Option(help="Leave users with fewer events out.")] = 0,
    min_item_events: Annotated[int, typer.Option(help="Leave items with fewer events out.")] = 0,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep repeats of (user, item, time) as events of their own.")
    ] = False,
    drop_incomplete: Annotated[
        bool, typer.Option("--drop-incomplete", help="Leave out rows that lack a user, an item or a time.")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="INPUT is images; a table has columns such as path, label, split.")
    ] = False,
    image_options: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="KEY=VALUE", help="Option of images, such as bad_images=skip; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set [that of the directory].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read logs in whatever format, write a data set to train on, and say what is in it."""
    from longview.config import parse
    from longview.data.images.source import is_image_source
    from longview.data.images.table import PATH as IMAGE_PATHS
    from longview.data.options import PrepareConfig
    from longview.data.prepare import open_log, prepare

    options: dict[str, Any] = {
        "user": user,
        "item": item,
        "time": time,
        "order": order,
        "actions": tuple(action or ()),
        "strengths": tuple(strength or ()),
        "ignore": tuple(ignore or ()),
        "items": items,
        "users": users,
        "title": title,
        "category": category,
        "split": split,
        "quantile": quantile,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "keep_duplicates": keep_duplicates,
        "drop_incomplete": drop_incomplete,
        "name": name,
    }
    if images or image_options or is_image_source(inputs[0]):
        from longview.cli.prepare_images import prepare_images_command

        prepare_images_command(inputs, out, options, image_options or [], overwrite=overwrite, json=json)
        return
    sources, columns = open_log(inputs, parse(PrepareConfig, options, "prepare"))
    if not json:
        chosen = ", ".join(f"{role} = {column}" for role, column, _ in columns.describe())
        files = f"{sources[0].path}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
        note(f"columns: {chosen} ({files})")
    if user is None and columns.user.lower() in IMAGE_PATHS:
        note(
            f"note: users are taken from the column {columns.user!r}; a table of images needs --images", colour="yellow"
        )
    with progress_bar() as report:
        data = prepare(inputs, out=out, overwrite=overwrite, report=report, **options)
    if json:
        emit_json(_document(data))
    else:
        _show(data)


def _document(data: PreparedData) -> dict[str, Any]:
    meta = data.meta.model_dump(mode="json")
    return {"data": str(data.path), **{key: meta[key] for key in ("name", "fingerprint", "columns", "split", "card")}}


def _show(data: PreparedData) -> None:
    from longview.data.card import DataCard

    assert data.path is not None
    show_card(DataCard.model_validate(data.meta.card), data.path)


def show_card(card: DataCard | ImageCard, path: Path) -> None:
    """Print a card, its notes on stderr, and what to do next."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(card_table(card))
    else:
        width = max(len(what) for _, rows in card.sections() for what, _ in rows)
        for heading, rows in card.sections():
            say(heading)
            for what, much in rows:
                say(f"  {what:<{width}}  {much}")
            say()
    for text in card.notes:
        note(f"note: {text}", colour="yellow")
    say(f"Written to {path}; this card is in {path}/card.md. Next:\n  longview train {path} --out RUN")


def card_table(card: DataCard | ImageCard) -> Table:
    """Return the card as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, rows in card.sections():
        table.add_row(Text(heading, style="bold not dim"), "")
        for what, much in rows:
            table.add_row(Text(f"  {what}"), Text(much))
    return table


@contextmanager
def progress_bar() -> Iterator[Report | None]:
    """Yield a reporter that draws a progress bar on stderr, or None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<17}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, total=1, completed=1)
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], total=total or None, completed=done)

        yield report
