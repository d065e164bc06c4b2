"""A folder of classes of tiny grey images that an encoder can learn to tell apart, and settings to train on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CONTRAST = 100  # of a pattern, under noise of all the rest of 0 to 255

SETTINGS = [
    "data.turned_classes=false",
    "encoder.preprocess.size=16",
    "data.validation_classes=0.25",
    "encoder.backbone.width=8",
    "encoder.backbone.blocks=2",
    "encoder.head.dimension=8",
    "sampler.classes_per_batch=3",
    "sampler.samples_per_class=2",
    "memory.capacity=20",
    "optimiser.rate=0.01",
    "optimiser.warmup_steps=2",
    "loop.epochs=2",
    "evaluation.resamples=50",
    "evaluation.gallery_queries=0",
]


def write_classes(folder: Path, *, classes: int = 12, each: int = 6, side: int = 16) -> Path:
    """Write `classes` folders of `each` images: a pattern of the class under noise, moved a little."""
    image = pytest.importorskip("PIL.Image", reason="images need pillow: pip install 'longview[images]'")
    for number in range(classes):
        generator = np.random.default_rng(number)
        pattern = np.kron(generator.integers(0, 2, (4, 4)) * CONTRAST, np.ones((side // 4, side // 4)))
        place = folder / f"class{number:02d}"
        place.mkdir(parents=True)
        for one in range(each):
            moved = np.roll(pattern, generator.integers(-1, 2, 2), (0, 1)) + generator.integers(
                0, 256 - CONTRAST, (side, side)
            )
            image.fromarray(moved.astype(np.uint8)).save(place / f"{one}.png")
    return folder
