"""Random changes of images, one at a time against what they mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longview.config import parse
from longview.data.images.augment import DRAWS, FIRST_DRAWS, Augment
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


def test_scale_shows_the_middle_larger_or_all_of_it_smaller() -> None:
    larger = Augment(scale=(3, 3)).apply(IMAGES, middle(), 9)
    torch.testing.assert_close(larger[..., 4, 4], IMAGES[..., 4, 4])
    torch.testing.assert_close(larger[..., 1::3, 1::3], IMAGES[..., 3:6, 3:6], atol=1e-5, rtol=0)
    smaller = Augment(scale=(1 / 3, 1 / 3)).apply(IMAGES, middle(), 9)
    assert (smaller[..., :3, :] == 1).all()
    torch.testing.assert_close(smaller[..., 3:6, 3:6], IMAGES[..., 1::3, 1::3], atol=1e-5, rtol=0)


def test_scale_is_drawn_on_a_log() -> None:
    change = Augment(scale=(0.5, 2.0))
    torch.testing.assert_close(change.apply(IMAGES, middle(), 9), IMAGES, atol=1e-5, rtol=0)
    assert torch.equal(change.apply(IMAGES, middle(_13=1.0), 9), Augment(scale=(2, 2)).apply(IMAGES, middle(), 9))


def test_stretch_widens_and_flattens_by_as_much() -> None:
    line = torch.ones(4, 1, 32, 32)
    line[..., 12:20, 12:20] = 0  # a square of 8 pixels
    wide = Augment(stretch=(4, 4)).apply(line, middle(), 32)[0, 0] < 0.5
    assert (wide.any(0).sum().item(), wide.any(1).sum().item()) == (16, 4)


def test_shear_leans_upright_lines_and_leaves_level_ones() -> None:
    level, upright = torch.ones(4, 1, 33, 33), torch.ones(4, 1, 33, 33)
    level[..., 16, :] = 0
    upright[..., 16] = 0
    shear = Augment(shear=45)
    leaning = shear.apply(upright, middle(_15=1.0), 33)
    torch.testing.assert_close(leaning[0, 0], 1 - torch.eye(33).flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(shear.apply(level, middle(_15=1.0), 33)[..., 16, 8:-8], level[..., 16, 8:-8])
    torch.testing.assert_close(shear.apply(upright, middle(), 33), upright, atol=1e-5, rtol=0)


def test_warp_moves_places_smoothly_and_no_further_than_it_says() -> None:
    ramp = torch.linspace(0, 1, 64).expand(4, 1, 64, 64)
    warp = Augment(warp=0.05)
    torch.testing.assert_close(warp.apply(ramp, middle(), 64), ramp, atol=1e-5, rtol=0)
    inner = warp.apply(ramp, warp.draws(4, 0, 0, 0), 64)[..., 8:-8, 8:-8]
    moved = (inner - ramp[..., 8:-8, 8:-8]).abs()
    assert 0.01 < moved.max() < 0.07  # a cubic overshoots its points a little
    assert inner.diff(dim=-1).min() > 0  # order is kept: nothing folds


def test_strokes_grow_or_shrink() -> None:
    line = torch.ones(4, 1, 9, 9)
    line[..., 3:6] = 0
    stroke = Augment(stroke=1.0)
    assert (stroke.apply(line, middle(_16=1.0), 9)[0, 0, 4] == 0).sum() == 5
    assert (stroke.apply(line, middle(_16=0.0), 9)[0, 0, 4] == 0).sum() == 1
    assert torch.equal(stroke.apply(line, middle(), 9), line)
    assert not stroke.moves
    half = Augment(stroke=0.5).apply(line, middle(_16=1.0), 9)[0, 0, 4]
    assert half.tolist() == [1, 1, 0.5, 0, 0, 0, 0.5, 1, 1]


def test_erase_fills_about_the_area_asked_for() -> None:
    wide = torch.zeros(4, 1, 100, 100)
    erased = Augment(erase=1.0, erase_area=(0.2, 0.2)).apply(wide, middle(), 100)
    assert erased.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.2] * 4, abs=0.02)
    assert (Augment(erase=0.4).apply(wide, middle(), 100) == 0).all()


@given(
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted), st.floats(0, 1), st.floats(0, 180), st.floats(0, 1),
    st.floats(0, 1), st.floats(0, 60), st.floats(0, 0.25), st.floats(0, 1), st.integers(0, 2**31), st.integers(1, 12),
)  # fmt: skip
def test_images_stay_images(
    area: list[float], flip: float, rotation: float, shift: float, erase: float, shear: float, warp: float,
    stroke: float, seed: int, size: int,
) -> None:  # fmt: skip
    change = Augment(
        crop_area=(area[0], area[1]), flip=flip, rotation=rotation, shift=shift, erase=erase, shear=shear, warp=warp,
        stroke=stroke, scale=(0.5, 1.5), stretch=(0.5, 1.0),
    )  # fmt: skip
    changed = change.apply(IMAGES, change.draws(4, seed, 1, 2), size)
    assert changed.shape == (4, 3, size, size)
    assert changed.isfinite().all()
    assert changed.min() >= -1e-5
    assert changed.max() <= 1 + 1e-5


def test_the_first_draws_are_those_of_runs_before_there_were_more() -> None:
    state = np.random.SeedSequence((3, 1, 2)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    assert torch.equal(Augment().draws(8, 3, 1, 2)[:, :FIRST_DRAWS], torch.rand(8, FIRST_DRAWS, generator=generator))


def test_draws_depend_on_seed_epoch_and_step_only() -> None:
    change = Augment()
    found = [change.draws(8, *key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert torch.equal(found[0], change.draws(8, 0, 0, 0))
    assert all(not torch.equal(found[0], other) for other in found[1:])


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(InputError, match="crop_area: expected 0 < from <= to <= 1"):
        parse(Augment, {"crop_area": (0.9, 0.5)}, "augment")
    with pytest.raises(InputError, match=r"scale: expected 0\.1 <= from <= to <= 10"):
        parse(Augment, {"scale": (0.0, 1.0)}, "augment")
