"""`longview config`: the presets, and every setting of one."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from longview.cli.output import emit_json, say


def config_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A preset, or a .yaml file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the presets, or print every setting of one as YAML: a file to edit and pass to `train --config`."""
    from longview.training.config import preset_names, resolve_config
    from longview.training.images import image_preset_names, resolve_image_config

    if name is None:
        names = [*preset_names(), *image_preset_names()]
        if json:
            emit_json(names)
        else:
            say("\n".join(names))
            if sys.stdout.isatty():
                say("\nSee one with `longview config NAME`; keep it with `longview config NAME > mine.yaml`.")
        return
    resolve = resolve_image_config if name in image_preset_names() else resolve_config
    values = resolve(name, set_ or []).model_dump(mode="json")
    if json:
        emit_json(values)
        return
    import yaml

    say(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
