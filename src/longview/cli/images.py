"""What `longview train`, `evaluate` and `embed` do where the data are images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.cli.output import emit_json, emit_table, note, say
from longview.errors import InputError

if TYPE_CHECKING:
    from longview.training.images import ImageRunConfig

DEFAULT = "image-small"


def train_on_images(
    data: Path,
    out: Path,
    config: str | None,
    overrides: Sequence[str],
    *,
    resume: bool,
    device: str,
    baselines: bool,
    json: bool,
) -> None:
    """Train an encoder on the prepared set of images `data`, and show its retrieval on test."""
    from rich.console import Console

    from longview.data.images import ImageSet
    from longview.training.distributed import speaks
    from longview.training.images import train_images
    from longview.training.progress import make_progress

    result = train_images(
        _config(config, overrides, out, resume),
        ImageSet.open(data),
        out,
        device=device,
        resume=resume,
        progress=make_progress(Console(stderr=True), counted="images"),
        baselines=baselines,
    )
    if not speaks():
        return
    if json:
        emit_json(result.to_dict())
        return
    _show([result.test, *result.baselines], result.skipped)
    say(f"\nThe result card is {out / 'card.md'}. Next:\n  longview embed {out} IMAGES --out vectors.parquet")


def evaluate_on_images(
    run: Path, split: str, *, baselines: bool, data: Path | None, device: str, json: bool, rerank: bool
) -> None:
    """Show the retrieval of the encoder in `run` on one split of its data set; with `rerank` also re-ranked."""
    from longview.evaluation.retrieval import RerankConfig
    from longview.training.devices import device_named
    from longview.training.images import load_image_run
    from longview.training.images.report import pixel_baseline, reports_of

    place = device_named(device)
    loaded = load_image_run(run, device=place)
    images = loaded.open_images(data)
    chosen = RerankConfig() if rerank else None
    own = reports_of(loaded.encoder, images, loaded.framing, loaded.config, split, device=place, rerank=chosen)
    others: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    if baselines and split == "test":
        note("evaluating pixels")
        others, skipped = pixel_baseline(images, loaded.framing, loaded.config)
    if json:
        emit_json({"reports": [*own, *others], "skipped": skipped})
        return
    _show([*own, *others], skipped)


def refuse(**given: object) -> None:
    """Refuse options of `longview evaluate` that are of runs on logs.

    Raises:
        InputError: one was given; it is named.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is of runs on logs, and this one is on images: leave it out")


def _config(name: str | None, overrides: Sequence[str], out: Path, resume: bool) -> ImageRunConfig:
    """Return the configuration asked for; to resume, by default the one the run began with."""
    from longview.config import override, parse
    from longview.training.config import preset_names
    from longview.training.images import ImageRunConfig, image_preset_names, resolve_image_config
    from longview.training.images.rundir import read_image_config

    if name in preset_names():
        raise InputError(
            f"{name!r} is a preset for logs, and the data are images: choose one of {', '.join(image_preset_names())}"
        )
    if not resume or name is not None:
        return resolve_image_config(name or DEFAULT, overrides)
    values = read_image_config(out).model_dump(mode="json")
    return parse(ImageRunConfig, override(values, overrides), f"{out} with --set")


def _show(reports: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
    import pyarrow as pa

    columns = {"": [report["name"] for report in reports]}
    columns |= {name: [report["metrics"][name] for report in reports] for name in reports[0]["metrics"]}
    emit_table(pa.table(columns), aligned=True)
    own = reports[0]
    if own.get("intervals"):
        low, high = own["intervals"]["map@r"]
        say(f"MAP@R of {own['name']}: 95 % interval over queries {low:.4f} to {high:.4f}")
    say(f"{own['split']}: {own['protocol']}")
    for report in reports[1:]:
        if report["protocol"] != own["protocol"]:
            say(f"{report['name']}: {report['protocol']}")
    for name, reason in skipped.items():
        note(f"{name} skipped: {reason}")
