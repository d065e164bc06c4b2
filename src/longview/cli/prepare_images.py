"""`longview prepare` where the input is images: a folder, a zip archive, or a table of paths and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longview.cli.output import emit_json
from longview.cli.prepare import progress_bar, show_card
from longview.config import override
from longview.data.images.meta import ImageCard
from longview.data.images.prepare import prepare_images
from longview.data.options import PrepareConfig
from longview.errors import InputError


def prepare_images_command(
    inputs: Sequence[str],
    out: Path,
    log_options: dict[str, Any],
    image_options: Sequence[str],
    *,
    overwrite: bool,
    json: bool,
) -> None:
    """Prepare the one input, show its card.

    Raises:
        InputError: several inputs, options of logs, or anything that `prepare_images` refuses.
    """
    if len(inputs) != 1:
        raise InputError(f"images are prepared from one folder, archive or table, got {len(inputs)} inputs")
    usual = PrepareConfig().model_dump()
    foreign = [name for name, value in log_options.items() if name != "name" and value != usual[name]]
    if foreign:
        raise InputError(
            f"--{foreign[0].replace('_', '-')} is of logs, and {inputs[0]} is images; options of images are given as "
            "--image key=value"
        )
    options = override({"name": log_options["name"]}, image_options)
    with progress_bar() as report:
        images = prepare_images(inputs[0], out=out, overwrite=overwrite, report=report, **options)
    if json:
        meta = images.meta.model_dump(mode="json")
        emit_json({"data": str(images.path), **{key: meta[key] for key in ("name", "kind", "fingerprint", "card")}})
    else:
        show_card(ImageCard.model_validate(images.meta.card), images.path)
