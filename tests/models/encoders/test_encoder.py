"""The encoder on the small convolutional net: shapes, pooling, freezing, rates, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longview.config import parse
from longview.errors import InputError
from longview.models.encoders import (
    ConvNetConfig,
    EncoderConfig,
    HeadConfig,
    ImageEncoder,
    PixelInput,
    PreprocessConfig,
    RatesConfig,
    optimiser_groups,
    parameter_groups,
)
from longview.models.encoders.features import Features

SMALL = EncoderConfig(backbone=ConvNetConfig(width=8), head=HeadConfig(dimension=6))


def build(config: EncoderConfig, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return config.build()


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 40), (3, 33)])
def test_embeddings_have_the_dimension_and_length_one(norm: str, channels: int, size: int) -> None:
    config = EncoderConfig.model_validate(
        {
            "backbone": {"kind": "convnet", "width": 16, "channels": channels, "norm": norm},
            "preprocess": {"size": size, "channels": channels},
            "head": {"dimension": 5},
        }
    )
    out = build(config)(pictures(3, channels, size, size))
    assert out.shape == (3, 5)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))


def test_the_default_is_four_blocks_of_64() -> None:
    encoder = build(EncoderConfig())
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3]
    assert encoder.backbone(torch.zeros(2, 1, 28, 28)).patches.shape == (2, 1, 64)


def test_deeper_blocks_add_to_what_they_are_given() -> None:
    config = ConvNetConfig(width=8, blocks=3, depth=2)
    backbone = config.build().eval()
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(8, 1, 3, 3), *[(8, 8, 3, 3)] * 4]
    assert sorted(name for stage in backbone.stages() for name in stage.parameters) == sorted(
        name for name, _ in backbone.named_parameters()
    )
    images = torch.rand(2, 1, 28, 28)
    first = backbone.blocks[0](images)
    for convolution in convolutions[1:]:
        torch.nn.init.zeros_(convolution.weight)  # nothing to add is left, only the pooling
    expected = F.max_pool2d(F.max_pool2d(first, 2), 2)
    torch.testing.assert_close(backbone(images).patches, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"backbone": ConvNetConfig(width=8, depth=2)})])
def test_it_learns_to_tell_patterns_apart(config: EncoderConfig) -> None:
    encoder = build(config)
    images = pictures(6, 1, 28, 28).repeat_interleave(4, 0).float() / 255
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    labels = torch.arange(6).repeat_interleave(4)
    optimiser = torch.optim.AdamW(optimiser_groups(parameter_groups(encoder), rate=0.01, weight_decay=0.0))
    losses = []
    for _ in range(25):
        z = encoder(noisy)
        logits = (z @ z.T / 0.1).masked_fill(torch.eye(24, dtype=torch.bool), -1e9)
        same = (labels[:, None] == labels) & ~torch.eye(24, dtype=torch.bool)
        loss = -(logits.log_softmax(1) * same).sum(1).div(3).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_pooling_is_what_it_is_called() -> None:
    patches = torch.rand(2, 7, 3) + 0.1
    summary = torch.rand(2, 3)
    pool = lambda pooling, power=3.0: (
        HeadConfig(pooling=pooling, gem_power=power, dimension=None).build(3, True).pool(Features(patches, summary))
    )
    torch.testing.assert_close(pool("avg"), patches.mean(1))
    torch.testing.assert_close(pool("max"), patches.amax(1))
    torch.testing.assert_close(pool("cls"), summary)
    torch.testing.assert_close(pool("gem", 1.0), patches.mean(1))
    assert torch.all(pool("gem") >= pool("avg") - 1e-6)  # power means grow with the power
    torch.testing.assert_close(pool("gem", 300.0), patches.amax(1), rtol=0.01, atol=0)


def test_bytes_and_their_share_of_255_are_one_image() -> None:
    encoder, images = build(SMALL).eval(), pictures(2, 1, 28, 28)
    torch.testing.assert_close(encoder(images), encoder(images.float() / 255))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(40, 64), (61, 30), (16, 16), (24, 24)])
def test_tensors_are_framed_as_the_loader_frames_files(fit: str, shape: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    config = PreprocessConfig.model_validate({"size": 24, "channels": 3, "fit": fit})
    smooth = F.interpolate(pictures(1, 3, 5, 5).float(), size=shape, mode="bicubic").clamp(0, 255).to(torch.uint8)
    pixels = config.pixels(image.fromarray(smooth[0].permute(1, 2, 0).numpy()))
    expected = (config.unit(torch.from_numpy(np.array(pixels))[None]) - 0.5) / 0.5
    error = (PixelInput(config, 3)(smooth) - expected).abs()
    # Pillow rounds twice; a crop may begin half a pixel away, which moves values by half their slope.
    assert float(error.mean()) < (0.05 if fit == "crop" else 0.006)
    assert float(error.max()) < (0.2 if fit == "crop" else 0.02)


def test_grey_and_colour_become_each_other() -> None:
    grey = PixelInput(PreprocessConfig(size=4, channels=1, mean=(0.0,), std=(1.0,)), 1)
    colour = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    colour[:, 1] = 255
    torch.testing.assert_close(grey(colour), torch.full((1, 1, 4, 4), 0.587))
    rgb = PixelInput(PreprocessConfig(size=4, channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)), 3)
    torch.testing.assert_close(rgb(torch.full((1, 1, 4, 4), 0.5))[0, :, 0, 0], torch.tensor([0.4, 0.3, 0.1]))


def test_frozen_stages_neither_learn_nor_move_their_statistics() -> None:
    encoder = build(SMALL.model_copy(update={"freeze": 2}))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder.train()
    encoder(pictures(4, 1, 28, 28)).sum().backward()
    optimiser.step()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("backbone.blocks.0", "backbone.blocks.1")) for name in moved)
    assert any(name.startswith("backbone.blocks.2") and "running_mean" in name for name in moved)
    assert "head.project.weight" in moved


def test_a_frozen_backbone_leaves_the_head() -> None:
    encoder = build(SMALL.model_copy(update={"freeze": "backbone"})).train()
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == {"head.project.weight", "head.project.bias"}
    assert not any(m.training for m in encoder.backbone.blocks.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert [group.name for group in parameter_groups(encoder)] == ["head", "head, no decay"]


def test_rates_fall_towards_the_pixels_and_every_parameter_is_in_one_group() -> None:
    encoder = build(SMALL)
    groups = parameter_groups(encoder, RatesConfig(backbone=0.5, decay=0.1))
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    rates = {group.name: group.multiplier for group in groups if group.decays}
    assert rates == pytest.approx({"head": 1.0, "block 3": 0.5, "block 2": 0.05, "block 1": 0.005, "block 0": 0.0005})
    assert all(p.dim() == 1 for group in groups if not group.decays for p in group.parameters.values())
    made = torch.optim.AdamW(optimiser_groups(groups, rate=0.2, weight_decay=0.3)).param_groups
    assert {(g["lr"], g["weight_decay"]) for g in made if g["name"].startswith("head")} == {(0.2, 0.3), (0.2, 0.0)}


def test_bad_settings_and_images_are_named() -> None:
    cases = {
        "no class token": lambda: build(EncoderConfig(head=HeadConfig(pooling="cls"))),
        "has 4 stages": lambda: build(EncoderConfig(freeze=5)),
        "preprocess.channels is 3 but the backbone reads 1": lambda: build(
            EncoderConfig(preprocess=PreprocessConfig(channels=3))
        ),
        "at least 16": lambda: build(EncoderConfig(preprocess=PreprocessConfig(size=8, channels=1)))(
            pictures(1, 1, 8, 8)
        ),
        "torch.int64": lambda: build(SMALL)(torch.zeros(1, 1, 28, 28, dtype=torch.int64)),
        "(28, 28)": lambda: build(SMALL)(torch.zeros(28, 28)),
        "does not divide width": lambda: parse(ConvNetConfig, {"norm": "group", "width": 9}, "encoder"),
        "1 or 3 numbers expected": lambda: parse(PreprocessConfig, {"mean": (0.1, 0.2)}, "encoder"),
        "freeze": lambda: parse(EncoderConfig, {"freeze": 0}, "encoder"),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=re.escape(message)):
            call()
