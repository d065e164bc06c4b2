"""`longview export`: the encoder of a run as one file that needs no Python of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.output import emit_json, say


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run trained on images.")],
    out: Annotated[Path, typer.Option(help="File to write: .pt2 (torch.export), or .onnx.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the encoder as one program, preprocessing included, and check that it gives the same vectors."""
    from longview.serving.export import export_run
    from longview.training.images import load_image_run

    loaded = load_image_run(run)
    made = export_run(loaded, out)
    width = loaded.encoder.dimension
    if json:
        emit_json({"file": str(out), "channels": made.image[0], "width": width, "difference": made.difference})
        return
    say(f"{out} takes images (batch, {made.image[0]}, height, width), bytes, and returns vectors (batch, {width})")
    if made.difference is None:
        say("It was not tried: onnxruntime is not installed (pip install 'longview[export]')")
    else:
        say(f"Its vectors differ from those of the run by {made.difference:.1g} of their largest value at most")
