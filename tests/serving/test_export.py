"""Exported programs take bytes of any size and give the encoder's embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from longview.errors import InputError, LongviewError
from longview.files import atomic_file
from longview.models.encoders import ConvNetConfig, EncoderConfig, HeadConfig, PreprocessConfig
from longview.serving import export
from longview.serving.export import export_encoder, export_program
from tests.models.encoders.test_encoder import build, pictures


def small(fit: str) -> EncoderConfig:
    return EncoderConfig(
        backbone=ConvNetConfig(width=8, channels=3),
        preprocess=PreprocessConfig.model_validate({"size": 24, "fit": fit}),
        head=HeadConfig(dimension=6, pooling="gem"),
    )


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_one_program_serves_any_batch_and_any_size(fit: str) -> None:
    encoder = build(small(fit))
    program = export_program(encoder, (3, 40, 50)).module()
    assert encoder.training  # left as it was
    for shape in ((1, 40, 50), (5, 24, 24), (2, 90, 31)):
        images = pictures(shape[0], 3, *shape[1:], seed=shape[0])
        torch.testing.assert_close(program(images), encoder.eval()(images), rtol=1e-4, atol=1e-5)
        encoder.train()


def test_the_file_is_loaded_without_us(tmp_path: Path) -> None:
    encoder = build(small("stretch")).eval()
    made = export_encoder(encoder, tmp_path / "encoder.pt2", (3, 40, 50))
    assert made.difference is not None
    assert made.difference < 1e-5
    images = pictures(4, 3, 33, 44)
    found = torch.export.load(tmp_path / "encoder.pt2").module()(images)
    torch.testing.assert_close(found, encoder(images), rtol=1e-4, atol=1e-5)


def test_a_program_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(LongviewError, match="other embeddings"):
        export_encoder(build(small("stretch")), tmp_path / "encoder.pt2", (3, 40, 50))
    assert not (tmp_path / "encoder.pt2").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def on_full_disk(target: Path) -> Iterator[Path]:
        with atomic_file(target) as work:
            work.unlink()
            work.symlink_to("/dev/full")
            yield work

    monkeypatch.setattr(export, "atomic_file", on_full_disk)
    (tmp_path / "encoder.pt2").write_text("old")
    with pytest.raises(LongviewError, match="the disk is full"):
        export_encoder(build(small("stretch")), tmp_path / "encoder.pt2", (3, 40, 50))
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.pt2"]
    assert (tmp_path / "encoder.pt2").read_text() == "old"


@pytest.mark.parametrize("which", ["weight", "statistics"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, which: str) -> None:
    encoder = build(small("stretch"))
    statistics = [buffer for name, buffer in encoder.named_buffers() if name.endswith("running_var")]
    with torch.no_grad():
        (next(encoder.head.parameters()) if which == "weight" else statistics[0]).view(-1)[0] = torch.nan
    with pytest.raises(InputError, match="the model's weights are not finite"):
        export_encoder(encoder, tmp_path / "encoder.pt2", (3, 40, 50))
    assert not any(tmp_path.iterdir())


def test_onnx_without_its_libraries_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"longview\[export\]"):
        export_encoder(build(small("stretch")), tmp_path / "encoder.onnx", (3, 40, 50), kind="onnx")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_onnx_gives_the_same_embeddings(tmp_path: Path, fit: str) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'longview[export]'")
    made = export_encoder(build(small(fit)), tmp_path / "encoder.onnx", (3, 40, 50), kind="onnx")
    assert made.difference is not None
    assert made.difference < 1e-4
