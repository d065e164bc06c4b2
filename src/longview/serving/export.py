"""An encoder as one program that takes bytes: preprocessing included, no Python of ours needed to run it."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from longview.errors import InputError, LongviewError
from longview.files import atomic_file
from longview.models.encoders.encoder import ImageEncoder
from longview.models.encoders.pixels import PixelInput
from longview.training.images.rundir import LoadedImageRun
from longview.training.tensors import all_finite

KINDS: dict[str, Literal["torch", "onnx"]] = {".pt2": "torch", ".onnx": "onnx"}  # by the suffix of the file
OPSET = 20
SMALLEST_SIDE, LARGEST_SIDE = 8, 1 << 13  # pixels that the program takes
TOLERANCE = 1e-4
NEEDS_ONNX = "ONNX export needs more libraries: pip install 'longview[export]'"


@dataclass(frozen=True)
class Exported:
    """What was written: `path`; the (channels, height, width) tried; the largest difference from the encoder.

    `difference` is None where nothing here runs the program (ONNX without onnxruntime).
    """

    path: Path
    image: tuple[int, int, int]
    difference: float | None


def export_program(encoder: ImageEncoder, image: tuple[int, int, int]) -> ExportedProgram:
    """Return the program from images (B, channels, H, W) uint8 to embeddings (B, dimension) float32.

    A batch may have any number of images, of 8 to 8,192 pixels a side; `image` (channels, height, width) is one to try.
    The encoder is exported in eval mode on the CPU and left as it was.
    """
    was, device = encoder.training, next(encoder.parameters()).device
    sample = torch.randint(0, 256, (2, *image), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sides = {"min": SMALLEST_SIDE, "max": LARGEST_SIDE}
    shape = {0: Dim("batch"), 2: Dim("height", **sides), 3: Dim("width", **sides)}
    try:
        with torch.no_grad():
            return torch.export.export(_Eval(encoder.eval().cpu()), (sample,), dynamic_shapes=(shape,))
    finally:
        encoder.to(device).train(was)


def export_run(run: LoadedImageRun, path: str | Path) -> Exported:
    """Write the encoder of a run as one file that takes images of any size, as bytes, and returns vectors of length 1.

    They are those of `longview embed` up to how images are scaled: there Pillow rounds to bytes, here nothing does.

    Args:
        run: of `load_image_run`.
        path: a file ending in .pt2 (`torch.export.load`) or .onnx.

    Raises:
        InputError: another suffix, or ONNX without its libraries.
        LongviewError: as `export_encoder`.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise InputError(f"{path}: a file ending in {' or '.join(KINDS)} expected")
    encoder = copy.deepcopy(run.encoder)
    config = encoder.preprocess.config.model_copy(update={"fit": run.framing.fit})
    if config.size is None:
        config = config.model_copy(update={"size": run.framing.size})
    encoder.preprocess = PixelInput(config, encoder.backbone.channels).to(encoder.preprocess.mean.device)
    encoder.head.config = encoder.head.config.model_copy(update={"normalise": True})
    side = max(run.framing.size, SMALLEST_SIDE)
    return export_encoder(encoder, path, (run.framing.channels, side + 3, side + 7), kind=KINDS[path.suffix])


def export_encoder(
    encoder: ImageEncoder, path: str | Path, image: tuple[int, int, int], *, kind: Literal["torch", "onnx"] = "torch"
) -> Exported:
    """Write `encoder` as one file and check that the file gives the encoder's embeddings.

    Args:
        encoder: any; it is exported as it embeds, in eval mode.
        path: the file: `.pt2` for `torch.export.load`, or `.onnx`.
        image: (channels, height, width) of an image to try it with.
        kind: `torch` (torch.export) or `onnx`, whose input is called `images` and whose output `embeddings`.

    Raises:
        InputError: ONNX without its libraries, or weights that are not finite.
        LongviewError: the written program gives other embeddings, or the disk is full; `path` is as it was.
    """
    path = Path(path)
    if kind == "onnx" and not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        raise InputError(NEEDS_ONNX)
    if not all_finite([*encoder.parameters(), *encoder.buffers()]):
        raise InputError(
            f"{path}: not written, as the model's weights are not finite, so its vectors are no numbers: train it again"
        )
    program = export_program(encoder, image)
    images = torch.randint(0, 256, (3, *image), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with atomic_file(path) as work:
        if kind == "torch":
            content = io.BytesIO()  # torch's writer hides what the disk says
            torch.export.save(program, content)
            work.write_bytes(content.getbuffer())
            with work.open("rb") as file:
                found: Tensor | None = torch.export.load(file).module()(images)
        else:
            found = _write_onnx(program, work, images)
        difference = None if found is None else _difference(encoder, images, found)
        if difference is not None and not difference <= TOLERANCE:
            raise LongviewError(
                f"{path}: not written, as the exported program gives other embeddings (by {difference:.2g}); "
                "please report it with the encoder's config"
            )
    return Exported(path, image, difference)


class _Eval(nn.Module):
    """The encoder's computation, without its modes."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.preprocess, self.backbone, self.head = encoder.preprocess, encoder.backbone, encoder.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(self.preprocess(images)))  # type: ignore[no-any-return]


def _difference(encoder: ImageEncoder, images: Tensor, found: Tensor) -> float:
    """Return the largest difference of `found` from the encoder's embeddings, as a share of their largest value."""
    was, device = encoder.training, next(encoder.parameters()).device
    try:
        with torch.no_grad():
            expected = encoder.eval()(images.to(device)).cpu()
    finally:
        encoder.train(was)
    return float((found.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _write_onnx(program: ExportedProgram, file: Path, images: Tensor) -> Tensor | None:
    """Write `program` to `file`; return what onnxruntime makes of `images`, or None where that is not installed."""
    # It says for each operator of torchvision that it does without them.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["embeddings"], opset_version=OPSET, verbose=False
    )
    assert onnx is not None
    onnx.save(str(file), external_data=False)
    if not importlib.util.find_spec("onnxruntime"):
        return None
    session = importlib.import_module("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0])
