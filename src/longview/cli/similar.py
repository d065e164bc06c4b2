"""`longview similar`: the items nearest to an item, or the images nearest to an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.output import emit_json, emit_table, note, note_skipped
from longview.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def similar_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Image files, or paths of images in the gallery.", show_default=False),
    ] = None,
    item: Annotated[list[str] | None, typer.Option("--item", metavar="ID", help="Item id; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", help="Neighbours for each.")] = 10,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Images to look among: a folder, a zip, a prepared set, or what `longview embed` wrote. "
            "Default: the images of the run."
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw the images found to this PNG file.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for images.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0, max=256)] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the items nearest to an item, or the images nearest to an image, by the cosine of what the model learned."""
    if bool(item) == bool(images):
        raise InputError("give either images (longview similar RUN photo.jpg) or items (--item ID)")
    if item:
        if gallery is not None or picture is not None:
            raise InputError("--gallery and --picture are of runs on images; --item asks a run on logs")
        from longview.serving.recommender import Recommender

        table = Recommender.load(run).similar_items(item, k)
    else:
        table = _similar_images(run, images or [], k, gallery, picture, device, workers)
    if json:
        emit_json(table.to_pylist())
    else:
        emit_table(table)


def _similar_images(
    run: Path, names: list[str], k: int, source: Path | None, picture: Path | None, device: str, workers: int
) -> pa.Table:
    """Return a table of the images nearest to each of `names`, and draw them where `picture` says."""
    from longview.evaluation.gallery import draw_gallery
    from longview.serving.similar_images import nearest_images, open_gallery, open_query, picture_rows
    from longview.training.devices import device_named
    from longview.training.images import load_image_run

    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"{picture}: the picture is a PNG file: a name ending in .png expected")
    place = device_named(device)
    loaded = load_image_run(run, device=place)
    if source is None and not (usual := Path(loaded.data["path"])).exists():
        raise InputError(f"{run}: its images are no longer at {usual}; say where to look: --gallery")
    if source is None:
        source = loaded.open_images().path
    found = open_gallery(loaded, source, workers=workers, device=place)
    note_skipped(found.skipped)
    queries = [open_query(loaded, name, found, place) for name in dict.fromkeys(names)]
    table = nearest_images(queries, found, k)
    if picture is not None:
        draw_gallery(picture, picture_rows(queries, found, table), f"Nearest by {run.name}")
        note(f"the picture is {picture}")
    return table
