"""Backbones of `transformers`: tiny random ones, of tokens and of maps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from longview.errors import InputError
from longview.models.encoders import (
    EncoderConfig,
    ImageEncoder,
    RatesConfig,
    TransformersConfig,
    parameter_groups,
)
from longview.serving.export import export_encoder
from longview.training.images import load_encoder, save_encoder
from tests.models.encoders.test_encoder import pictures

TOKENS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8, **TOKENS}
ARCHITECTURES = {
    "vit": (VIT, 16, 3, True),
    "dinov2": ({**VIT, "model_type": "dinov2"}, 16, 3, True),
    "siglip": ({**VIT, "model_type": "siglip_vision_model"}, 16, 3, False),
    "resnet": (
        {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        16,
        2,
        False,
    ),
}
SKIP = "transformers is not installed: pip install 'longview[images]'"


def build(architecture: dict[str, object], **more: object) -> ImageEncoder:
    torch.manual_seed(0)
    values = {"backbone": {"kind": "transformers", "architecture": architecture}, "preprocess": {"size": 32}, **more}
    return EncoderConfig.model_validate(values).build()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_and_stages(name: str) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    architecture, width, layers, has_summary = ARCHITECTURES[name]
    encoder = build(architecture)
    backbone = encoder.backbone
    features = backbone(torch.rand(2, 3, 32, 32))
    assert (backbone.width, backbone.has_summary) == (width, has_summary)
    assert features.patches.shape[::2] == (2, width)
    assert features.patches.shape[1] == 16  # 32 / 8 a side, or a map of stride 8
    assert (features.summary is not None) is has_summary
    stages = backbone.stages()
    assert [stage.name for stage in stages] == ["stem", *(f"layer {n}" for n in range(layers))]
    held = [parameter for stage in stages for parameter in stage.parameters]
    assert sorted(held) == sorted(parameter for parameter, _ in backbone.named_parameters())
    assert all(stage.parameters for stage in stages)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_freezing_and_rates(name: str) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    encoder = build(ARCHITECTURES[name][0], freeze=2).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    frozen = [stage.parameters for stage in encoder.backbone.stages()[:2]]
    learning = [p for group in parameter_groups(encoder) for p in group.parameters.values()]
    assert sorted(map(id, learning)) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)
    encoder(pictures(4, 3, 32, 32)).square().sum(1).sub(encoder(pictures(4, 3, 32, 32, seed=1))[:, 0]).sum().backward()
    torch.optim.SGD(learning, lr=0.1).step()
    moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert not moved & {f"backbone.{key}" for part in frozen for key in part}
    assert any(key.startswith("backbone.") for key in moved)
    multipliers = [group.multiplier for group in parameter_groups(build(VIT), RatesConfig(decay=0.5)) if group.decays]
    assert multipliers == [1, 1, 0.5, 0.25, 0.125]  # head, three layers, stem


def test_frozen_statistics_stay() -> None:
    pytest.importorskip("transformers", reason=SKIP)
    encoder = build(ARCHITECTURES["resnet"][0], freeze="backbone").train()
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    encoder(pictures(4, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in encoder.backbone.state_dict().items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_encoders_need_no_other_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    encoder = build(ARCHITECTURES[name][0], head={"pooling": "gem", "dimension": 4}).eval()
    save_encoder(tmp_path, encoder)
    images = pictures(2, 3, 40, 50)
    assert torch.equal(load_encoder(tmp_path)(images), encoder(images))


def test_a_directory_gives_weights_and_preprocessing(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    source = build(VIT).backbone
    source.model.save_pretrained(tmp_path / "vit")
    said = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(said))
    config = EncoderConfig(backbone=TransformersConfig(directory=tmp_path / "vit"))
    encoder = config.build()
    assert encoder.preprocess.config.mean == (0.1, 0.2, 0.3)
    assert encoder.preprocess.config.fit == "stretch"
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.backbone.eval()(images).patches, source.eval()(images).patches)
    assert encoder.resolved().backbone.directory is None  # type: ignore[union-attr]


def test_weights_that_are_missing_are_not_drawn_in_silence(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    build(VIT).backbone.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(InputError, match="would stay random"):
        TransformersConfig(directory=tmp_path).build()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_export_keeps_the_embeddings(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=SKIP)
    made = export_encoder(build(ARCHITECTURES[name][0]), tmp_path / "encoder.pt2", (3, 40, 50))
    assert made.difference is not None
    assert made.difference < 1e-4


def test_bad_architectures_are_named() -> None:
    pytest.importorskip("transformers", reason=SKIP)
    for architecture, message in (({"hidden_size": 4}, "model_type"), ({"model_type": "vitt"}, "vitt")):
        with pytest.raises(InputError, match=message):
            TransformersConfig(architecture=architecture).build()
    with pytest.raises(InputError, match="does not read images"):
        text = {"model_type": "bert", "vocab_size": 8, **TOKENS}
        TransformersConfig(architecture=text).build()


def test_a_directory_that_is_not_there_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is downloaded"):
        TransformersConfig(directory=tmp_path / "facebook" / "dinov2-small").build()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"longview\[images\]"):
        TransformersConfig(architecture=VIT).build()


def test_one_source_of_weights() -> None:
    with pytest.raises(ValueError, match="not both or none"):
        TransformersConfig()
