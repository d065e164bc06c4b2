"""Images that stay on the device give the batches that decoded ones give, turned classes included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longview.data.images import Augment, ImageBatches, ImageSet, InOrder, prepare_images
from longview.data.images.framing import Framing
from longview.data.images.making import Turned, looking, looks
from longview.data.images.resident import ResidentImages, why_not_resident
from longview.errors import InputError
from tests.image_classes import write_classes

CHANGES = Augment(rotation=20, shift=0.1, crop_area=(0.7, 1.0), erase=0.5, shear=10, warp=0.05, stroke=0.5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("classes")
    return prepare_images(write_classes(folder / "source"), out=folder / "data", workers=0, test_classes=0.34)


@pytest.mark.parametrize("augment", [Augment(), CHANGES], ids=["as they are", "changed"])
@pytest.mark.parametrize("turning", [False, True, "mirrored"], ids=["upright", "turned", "mirrored"])
def test_a_batch_is_that_of_decoded_images_bit_for_bit(images: ImageSet, augment: Augment, turning: Turned) -> None:
    view, framing = images.train, Framing(size=16, channels=1)
    order = InOrder(len(view) * looks(turning), 5)
    batches = ImageBatches(view, order, framing, augment=augment, seed=3, turned=turning)
    resident = ResidentImages(view, framing, augment=augment, device=torch.device("cpu"), turned=turning)
    for step, (batch, samples) in enumerate(zip(batches.epoch(2), order.epoch(2), strict=True)):
        draws = augment.draws(len(samples), 3, 2, step) if augment.changes else None
        other = resident.batch(samples, draws)
        for one, same in zip(vars(batch).values(), vars(other).values(), strict=True):
            assert torch.equal(one, same)


def test_turned_images_are_classes_and_samples_of_their_own(images: ImageSet) -> None:
    view = images.train
    resident = ResidentImages(view, Framing(size=16, channels=1), device=torch.device("cpu"), turned=True)
    upright, left = (resident.batch(torch.tensor([7 + turn * len(view)])) for turn in (0, 1))
    assert torch.equal(torch.rot90(upright.images, 1, (2, 3)), left.images)
    assert left.labels == upright.labels + images.meta.num_classes
    assert left.ids == upright.ids + len(images)


def test_mirror_images_and_their_turns_are_classes_too(images: ImageSet) -> None:
    view = images.train
    resident = ResidentImages(view, Framing(size=16, channels=1), device=torch.device("cpu"), turned="mirrored")
    upright, mirror, left = (resident.batch(torch.tensor([7 + look * len(view)])) for look in (0, 4, 5))
    assert torch.equal(upright.images.flip(3), mirror.images)
    assert torch.equal(torch.rot90(mirror.images, 1, (2, 3)), left.images)
    assert mirror.labels == upright.labels + 4 * images.meta.num_classes
    assert left.ids == upright.ids + 5 * len(images)


def test_four_quarter_turns_are_none() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 5, 5, 1), dtype=np.uint8))
    turns = torch.tensor([1, 2, 3])
    assert torch.equal(looking(looking(pixels, turns), 4 - turns), pixels)


def test_images_in_files_cannot_stay(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="images need pillow: pip install 'longview[images]'")
    source = write_classes(tmp_path / "source", classes=3, each=2)
    pillow.new("L", (40, 20)).save(source / "class00" / "other-size.png")
    files = prepare_images(source, out=tmp_path / "data", workers=0)
    assert "in files" in str(why_not_resident(files.train))
    with pytest.raises(InputError, match="cannot stay on a device"):
        ResidentImages(files.train, Framing(size=16, channels=1), device=torch.device("cpu"))
