"""The tiles cover the mask exactly, and little more than it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from longview.ops.attention import MaskSpec
from longview.ops.attention.tiles import ALIGN, ROWS, blocks_of, spans, visited
from tests.ops.attention.conftest import MASKS

sizes = st.tuples(st.integers(0, 12), st.integers(0, 70), st.integers(0, 20))


def painted(mask: MaskSpec, c: int, h: int, t: int) -> Tensor:
    """Return how often the tiles of a sequence visit each pair, edges applied."""
    n = c + h + t
    paint = torch.zeros(n, n)
    for block in blocks_of(mask, c, h, t):
        for tile in block.tiles:
            weight = torch.ones(block.stop - block.start, tile.stop - tile.start)
            for edge in tile.edges:
                weight[:, edge.start : edge.stop] *= edge.keep
            paint[block.start : block.stop, tile.start : tile.stop] += weight
    return paint


@pytest.mark.usefixtures("small_tiles")
@given(MASKS, sizes)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_visit_every_visible_pair_once_and_no_other(mask: MaskSpec, size: tuple[int, int, int]) -> None:
    assert torch.equal(painted(mask, *size), mask.dense(*size).float())


@given(MASKS, sizes)
def test_spans_are_the_rows_of_the_mask(mask: MaskSpec, size: tuple[int, int, int]) -> None:
    for row, expected in enumerate(mask.dense(*size)):
        seen = {column for lo, hi in spans(mask, *size, row) for column in range(lo, hi)}
        assert seen == set(expected.nonzero()[:, 0].tolist())


def test_full_size_tiles_cover_a_long_mask() -> None:
    for mask in (MaskSpec.ultra(256, 128), MaskSpec.ultra_prefix(256, 128), MaskSpec.causal()):
        assert torch.equal(painted(mask, 0, 1500, 0), mask.dense(0, 1500, 0).float())


@pytest.mark.parametrize(("window", "prefix"), [(256, 128), (512, 256), (64, 0), (100, 30)])
def test_a_block_visits_its_window_and_prefix_and_one_block_more(window: int, prefix: int) -> None:
    mask = MaskSpec.ultra_prefix(window, prefix)
    for length in (1000, 8192, 50_000):
        most = length * (window + prefix + ROWS + ALIGN)
        assert mask.pairs(0, length, 0) <= visited(mask, 0, length, 0) <= most


def test_doubling_the_length_doubles_the_work() -> None:
    mask = MaskSpec.ultra_prefix(256, 128)
    per_block = ROWS * (256 + 128 + ROWS)  # window start and block start are both multiples of ALIGN
    assert visited(mask, 0, 16_384, 0) - visited(mask, 0, 8_192, 0) == 8_192 // ROWS * per_block


def test_recent_rows_add_their_full_view_and_no_more() -> None:
    window, recent = MaskSpec(local_window=256), MaskSpec.ultra(256, 128)
    extra = visited(recent, 0, 16_384, 0) - visited(window, 0, 16_384, 0)
    assert 128 * (16_384 - 1024) < extra <= 128 * 16_384
