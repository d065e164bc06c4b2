"""The tiles cover the mask exactly, and little more than it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from longview.ops.attention import MaskSpec
from longview.ops.attention.tiles import ALIGN, ROWS, TOGETHER, Block, blocks_of, runs_of, spans, visited, visits
from tests.ops.attention.conftest import MASKS

sizes = st.tuples(st.integers(0, 12), st.integers(0, 70), st.integers(0, 20))


def painted(blocks: Iterable[Block], length: int) -> Tensor:
    """Return how often the tiles of a sequence visit each pair, edges applied."""
    paint = torch.zeros(length, length)
    for block in blocks:
        for further in range(0, block.count * block.height, block.height):
            rows = slice(block.start + further, block.stop + further)
            for tile in block.tiles:
                weight = torch.ones(block.height, tile.width)
                for edge in tile.edges:
                    weight[:, edge.start : edge.stop] *= edge.keep
                moved = further if tile.moves else 0
                paint[rows, tile.start + moved : tile.stop + moved] += weight
    return paint


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("form", [blocks_of, runs_of])
@given(MASKS, sizes)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiles_visit_every_visible_pair_once_and_no_other(
    form: Callable[..., tuple[Block, ...]], mask: MaskSpec, size: tuple[int, int, int]
) -> None:
    assert torch.equal(painted(form(mask, *size), sum(size)), mask.dense(*size).float())


@given(MASKS, sizes)
def test_spans_are_the_rows_of_the_mask(mask: MaskSpec, size: tuple[int, int, int]) -> None:
    for row, expected in enumerate(mask.dense(*size)):
        seen = {column for lo, hi in spans(mask, *size, row) for column in range(lo, hi)}
        assert seen == set(expected.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("form", [blocks_of, runs_of])
@pytest.mark.parametrize("name", ["causal", "ultra", "ultra_prefix"])
def test_full_size_tiles_cover_a_long_mask(form: Callable[..., tuple[Block, ...]], name: str) -> None:
    mask = MaskSpec.preset(name)
    assert torch.equal(painted(form(mask, 0, 2000, 0), 2000), mask.dense(0, 2000, 0).float())


def test_equal_blocks_are_computed_together() -> None:
    """What is left to do one by one is the beginning, the end, and every few blocks between."""
    mask, length = MaskSpec.ultra_prefix(256, 128), 8192
    blocks, runs = blocks_of(mask, 0, length, 0), runs_of(mask, 0, length, 0)
    assert sum(run.count for run in runs) == len(blocks) == length // ROWS
    assert visits(runs) == visits(blocks)
    assert len(runs) <= 8 + length // ROWS // (TOGETHER // (ROWS * (256 + ROWS)))


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
