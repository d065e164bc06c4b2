"""Jagged helpers against plain lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.ops import jagged

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@given(LENGTHS)
def test_positions_and_segments(lengths: list[int]) -> None:
    offsets = jagged.offsets_from_lengths(torch.tensor(lengths))
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert jagged.segment_ids(offsets).tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert jagged.positions(offsets).tolist() == [j for n in lengths for j in range(n)]
    assert jagged.positions_from_end(offsets).tolist() == [n - 1 - j for n in lengths for j in range(n)]


@given(LENGTHS, st.integers(0, 3))
def test_padding_there_and_back(lengths: list[int], room: int) -> None:
    offsets = jagged.offsets_from_lengths(torch.tensor(lengths))
    values = torch.arange(1, sum(lengths) * 2 + 1).view(-1, 2)
    padded = jagged.to_padded(values, offsets, max(lengths) + room)
    assert padded.shape == (len(lengths), max(lengths) + room, 2)
    assert int((padded > 0).sum()) == values.numel()
    assert torch.equal(jagged.from_padded(padded, offsets, len(values)), values)


def test_last_rows() -> None:
    assert jagged.last_rows(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 4])).tolist() == [1, 4]
