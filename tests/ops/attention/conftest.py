"""What the attention tests share: masks and batches of every kind, and tiles small enough to meet many of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from longview.ops.attention import MaskSpec, packing, tiles

MASKS = st.builds(
    MaskSpec,
    local_window=st.integers(0, 12),
    global_size=st.integers(0, 9),
    global_mode=st.sampled_from(["prefix", "recent"]),
    context_rows=st.sampled_from(["causal", "bidirectional"]),
    context_visible=st.booleans(),
    target_scope=st.sampled_from(["full", "semi_local"]),
    target_group=st.integers(1, 4),
    target_in_window=st.booleans(),
    target_self=st.booleans(),
    prefix_counts_context=st.booleans(),
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 8 rows, tiles of 24 columns, and in-place sequences from 31 tokens on."""

    def forget() -> None:
        tiles.blocks_of.cache_clear()
        tiles.runs_of.cache_clear()
        packing.packing_of.cache_clear()

    for module, name, value in (
        (tiles, "ROWS", 8),
        (tiles, "COLUMNS", 24),
        (tiles, "ALIGN", 4),
        (packing, "BUCKET", 8),
        (tiles, "LONG", 30),
        (tiles, "TALL_ROWS", 16),
        (tiles, "TOGETHER", 600),
        (packing, "CACHED", 2000),
    ):
        monkeypatch.setattr(module, name, value)
    forget()
    yield
    forget()
