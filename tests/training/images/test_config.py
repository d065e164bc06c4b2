"""A configuration of images: presets, and what is refused before anything is read."""

from __future__ import annotations

import pytest

from longview.errors import InputError
from longview.training.images import image_preset_names, resolve_image_config


@pytest.mark.parametrize("name", image_preset_names())
def test_presets_are_whole(name: str) -> None:
    config = resolve_image_config(name)
    assert config.name == name
    config.encoder.build()
    config.loss.build()
    if config.memory is not None:
        config.memory.of_width(8).build()


@pytest.mark.parametrize("kind", ["none", "xbn", "axbn", "moving-average"])
def test_drift_is_chosen_by_name(kind: str) -> None:
    memory = resolve_image_config("image-small", [f"memory.drift.kind={kind}"]).memory
    assert memory is not None
    assert memory.of_width(4).drift.kind == kind


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("memory.capacity=63", "memory.capacity 63 is less than a batch of 64"),
        ("sampler.clases_per_batch=4", "did you mean 'classes_per_batch'"),
        ("optimiser.embedding_weight_decay=0.1", "optimiser.embedding_weight_decay is of runs on logs"),
        ("data.augment.scale=[1.2,0.8]", r"scale: expected 0\.1 <= from <= to <= 10"),
        ("optimiser.tables=rowwise", "of runs on logs"),
        ("loss.kind=contrastiv", r"loss\.kind: .*got 'contrastiv' \(did you mean 'contrastive'\?\)$"),
        ("memory.drift.kind=axnb", r"memory\.drift\.kind: .*'moving-average', got 'axnb' \(did you mean 'axbn'\?\)$"),
        (
            "memory.drift={rate: 0.2}",
            r"memory\.drift\.kind is missing, .*; one of 'none', 'xbn', 'axbn', 'moving-average'$",
        ),
        ("encoder.backbone={}", r"encoder\.backbone\.kind is missing, .*'convnet'"),
        ("encoder.freeze=bckbone", r"got 'bckbone' \(did you mean 'backbone'\?\)"),
        ("memory.drift.noize=1", r"unknown key 'memory\.drift\.noize' \(did you mean 'noise'\?\); allowed: .*, noise,"),
        ("encoder.backbone.width=0", r"--set: encoder\.backbone\.width: .*greater than or equal to 1, got 0$"),
        (
            "encoder.backbone={kind: convnet, norm: group, groups: 3}",
            r"--set: encoder\.backbone: groups 3 does not divide",
        ),
        ("data.fit=[crop]", r"data\.fit: .*got \['crop'\]"),
        ("loss.kind=arcface", "set memory to null"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_image_config("image-small", [setting])


def test_a_memory_before_l2_needs_a_head_that_does_not_normalise() -> None:
    with pytest.raises(InputError, match=r"before-l2 needs encoder\.head\.normalise false"):
        resolve_image_config("image-small", ["memory.space=before-l2", "encoder.head.normalise=true"])


def test_a_setting_that_the_loss_does_not_have_is_refused() -> None:
    config = resolve_image_config("image-small", ["loss.kind=contrastive", "loss.settings.margin=0.2"])
    with pytest.raises(InputError, match=r"loss\.settings: unknown key 'margin'.*negative_margin"):
        config.loss.build()


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no preset 'image-smal' for images \(did you mean 'image-small'"):
        resolve_image_config("image-smal")
