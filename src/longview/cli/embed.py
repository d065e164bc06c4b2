"""`longview embed`: the vectors of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.output import emit_json, note_skipped, say


def embed_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run trained on images.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder or zip of images, or a prepared set.")],
    out: Annotated[Path, typer.Option(help="File to write: .parquet, or .arrow.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that decode files.", min=0, max=256)] = 2,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a row an image, its path below IMAGES and its vector, to a Parquet or Arrow file."""
    from longview.training.devices import device_named
    from longview.training.images import load_image_run
    from longview.training.images.embed import check_suffix, embed_images, write_vectors

    check_suffix(out)  # before the work, not after it
    place = device_named(device)
    found = embed_images(load_image_run(run, device=place), images, workers=workers, skip_bad=skip_bad, device=place)
    write_vectors(out, found.table)
    note_skipped(found.skipped)
    if json:
        emit_json({"file": str(out), "images": found.table.num_rows, "skipped": found.skipped})
    else:
        say(f"{found.table.num_rows:,} vectors of {found.width} dimensions are in {out}")
