"""Random changes of images, one at a time against what they mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longview.config import parse
from longview.data.images.augment import DRAWS, Augment
from longview.errors import InputError

IMAGES = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def middle(**changes: float) -> Tensor:
    """Return draws that ask for the middle of every range, but for `changes` by place."""
    draws = torch.full((4, DRAWS), 0.5)
    for place, value in changes.items():
        draws[:, int(place[1:])] = value
    return draws


def test_no_change_is_no_change() -> None:
    assert not Augment().changes
    assert torch.equal(Augment().apply(IMAGES, middle(), 9), IMAGES)


def test_flip_is_a_mirror() -> None:
    flip = Augment(flip=0.3)
    torch.testing.assert_close(flip.apply(IMAGES, middle(_4=0.2), 9), IMAGES.flip(-1))
    torch.testing.assert_close(flip.apply(IMAGES, middle(_4=0.4), 9), IMAGES)


def test_rotation_by_a_right_angle() -> None:
    turned = Augment(rotation=90).apply(IMAGES, middle(_5=1.0), 9)
    torch.testing.assert_close(turned, IMAGES.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_shift_by_whole_pixels_fills_with_white() -> None:
    moved = Augment(shift=1 / 3).apply(IMAGES, middle(_6=1.0), 9)
    torch.testing.assert_close(moved[..., :6], IMAGES[..., 3:])
    assert (moved[..., 6:] == 1).all()
    assert (Augment(shift=1 / 3, fill=0).apply(IMAGES, middle(_6=1.0), 9)[..., 6:] == 0).all()


def test_crop_shows_a_part_larger() -> None:
    corner = Augment(crop_area=(1 / 9, 1 / 9)).apply(IMAGES, middle(_2=0.0, _3=1.0), 3)
    torch.testing.assert_close(corner, IMAGES[..., 6:, :3], atol=1e-5, rtol=0)


def test_erase_fills_about_the_area_asked_for() -> None:
    wide = torch.zeros(4, 1, 100, 100)
    erased = Augment(erase=1.0, erase_area=(0.2, 0.2)).apply(wide, middle(), 100)
    assert erased.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.2] * 4, abs=0.02)
    assert (Augment(erase=0.4).apply(wide, middle(), 100) == 0).all()


@given(
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted), st.floats(0, 1), st.floats(0, 180), st.floats(0, 1),
    st.floats(0, 1), st.integers(0, 2**31), st.integers(1, 12),
)  # fmt: skip
def test_images_stay_images(
    area: list[float], flip: float, rotation: float, shift: float, erase: float, seed: int, size: int
) -> None:
    change = Augment(crop_area=(area[0], area[1]), flip=flip, rotation=rotation, shift=shift, erase=erase)
    changed = change.apply(IMAGES, change.draws(4, seed, 1, 2), size)
    assert changed.shape == (4, 3, size, size)
    assert changed.isfinite().all()
    assert changed.min() >= -1e-5
    assert changed.max() <= 1 + 1e-5


def test_draws_depend_on_seed_epoch_and_step_only() -> None:
    change = Augment()
    found = [change.draws(8, *key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert torch.equal(found[0], change.draws(8, 0, 0, 0))
    assert all(not torch.equal(found[0], other) for other in found[1:])


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(InputError, match="crop_area: expected 0 < from <= to <= 1"):
        parse(Augment, {"crop_area": (0.9, 0.5)}, "augment")
