"""`longview train`: from a prepared data set to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.output import emit_json, note, say
from longview.errors import InputError

if TYPE_CHECKING:
    from longview.training.config import RunConfig

DEFAULT = "hstu-small"
NEXT = {"evaluate": " --split validation", "recommend": " --user ID"}


def train_command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Directory written by `longview prepare`.")],
    out: Annotated[Path, typer.Option(help="Directory of the run: model, checkpoint, result card.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml",
            help=f"Preset (see `longview config`) or file. [default: {DEFAULT}; images: image-small]",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set model.layers=4."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    baselines: Annotated[bool, typer.Option(help="Evaluate the baselines beside the model.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Train a model, keep what is best on validation, evaluate it once on test. Ctrl-C leaves a checkpoint."""
    from rich.console import Console

    from longview.cli.images import train_on_images
    from longview.cli.reports import show_reports
    from longview.data.dataset import PreparedData
    from longview.data.images.imageset import is_image_set
    from longview.training import train
    from longview.training.distributed import speaks
    from longview.training.progress import make_progress

    if is_image_set(data):
        train_on_images(
            data, out, config, set_ or [], resume=resume, device=device, baselines=baselines, json=json
        )  # fmt: skip
        return
    prepared = PreparedData.open(data)  # first: a mistyped folder is not to be blamed on the configuration
    chosen = _config(config, set_ or [], out, resume)
    result = train(
        chosen,
        prepared,
        out,
        device=device,
        resume=resume,
        progress=make_progress(Console(stderr=True)),
        baselines=baselines,
    )
    if not speaks():
        return
    if json:
        emit_json(result.to_dict())
        return
    for outcome in (result.outcome, *result.further):
        show_reports([outcome.test, *outcome.baselines.reports])
        for name, reason in outcome.baselines.skipped.items():
            note(f"{name} skipped: {reason}")
        say()
    following = "evaluate" if chosen.task == "ranking" else "recommend"
    say(f"The result card is {out / 'card.md'}. Next:\n  longview {following} {out}{NEXT[following]}")


def _config(name: str | None, overrides: list[str], out: Path, resume: bool) -> RunConfig:
    """Return the configuration asked for; to resume, by default the one the run began with."""
    from longview.config import override, parse
    from longview.training.config import RunConfig, preset_names, resolve_config
    from longview.training.images import image_preset_names

    if name in image_preset_names():
        raise InputError(
            f"{name!r} is a preset for images, and DATA is of logs: choose one of {', '.join(preset_names())}, or "
            "prepare images first (longview prepare IMAGES --out DATA)"
        )
    if not resume or name is not None:
        return resolve_config(name or DEFAULT, overrides)
    from longview.training.rundir import read_config

    return parse(RunConfig, override(read_config(out).model_dump(mode="json"), overrides), f"{out} with --set")
