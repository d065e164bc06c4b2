"""An encoder on disk: what is written is what is read, and damage is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from longview.errors import InputError
from longview.models.encoders import ConvNetConfig, EncoderConfig, HeadConfig
from longview.training.images import load_encoder, save_encoder

SMALL = EncoderConfig(backbone=ConvNetConfig(width=8), head=HeadConfig(dimension=6))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    shape, generator = (count, 1, 28, 28), torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_saving_and_loading_gives_the_same_embeddings(tmp_path: Path) -> None:
    encoder = SMALL.build()
    encoder(pictures(8))  # moves the running statistics
    save_encoder(tmp_path / "e", encoder)
    again = load_encoder(tmp_path / "e")
    assert not again.training
    images = pictures(3, seed=5)
    assert torch.equal(again(images), encoder.eval()(images))


def test_a_damaged_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("not a run directory (no config.json)")):
        load_encoder(tmp_path)
    save_encoder(tmp_path, SMALL.build())
    weights, config = tmp_path / "encoder.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=re.escape("encoder.safetensors: damaged")):
        load_encoder(tmp_path)
    weights.write_bytes(whole)
    config.write_text(text.replace('"dimension": 6', '"dimension": 7'))
    with pytest.raises(InputError, match=re.escape("does not fit config.json: head.project.bias has shape (6,)")):
        load_encoder(tmp_path)
    config.write_text(text.replace('"freeze"', '"freezes"'))
    with pytest.raises(InputError, match="did you mean 'freeze'"):
        load_encoder(tmp_path)
