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


PARTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5)


@given(PARTS, st.integers(1, 7))
def test_newest_members_are_context_targets_and_the_newest_history(
    parts: list[tuple[int, int, int]], length: int
) -> None:
    context, history, targets = (torch.tensor(x) for x in zip(*parts, strict=True))
    offsets = jagged.offsets_from_lengths(context + history + targets)
    total = int(offsets[-1])
    expected, ages = [], []
    for c, h, t in parts:
        expected += [True] * c + [h - x <= length for x in range(h)] + [True] * t
        ages += [h - 1 - x for x in range(-c, h + t)]
    assert jagged.history_ages(offsets, total, targets).tolist() == ages
    members = jagged.newest_members(offsets, total, length, context, targets)
    assert members.tolist() == expected
    rows = jagged.rows_where(members, sum(expected))
    assert rows.tolist() == [i for i, kept in enumerate(expected) if kept]
    lengths = jagged.counts_within(members, offsets)
    assert lengths.tolist() == [c + min(h, length) + t for c, h, t in parts]


def test_taken_rows_and_their_gradient() -> None:
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 0, 3])
    assert torch.equal(jagged.take_rows(values, rows), values[rows])
    torch.autograd.gradcheck(jagged.take_rows, (values, rows))


@given(LENGTHS, st.data())
def test_sequences_are_joined_behind_each_other(lengths: list[int], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.integers(0, 6), min_size=len(lengths), max_size=len(lengths)))
    first, second = (jagged.offsets_from_lengths(torch.tensor(x)) for x in (lengths, others))
    a, b = torch.arange(sum(lengths)), 100 + torch.arange(sum(others))
    joined = torch.cat([a, b])[jagged.concat_rows(first, second, len(a), len(b))]
    split = zip(a.split(lengths), b.split(others), strict=True)
    assert joined.tolist() == [int(x) for pair in split for part in pair for x in part]


@given(LENGTHS, st.data())
def test_rows_of_chosen_sequences(lengths: list[int], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=5))
    offsets = jagged.offsets_from_lengths(torch.tensor(lengths))
    rows, made = jagged.rows_of(offsets, torch.tensor(chosen, dtype=torch.int64))
    parts = torch.arange(sum(lengths)).split(lengths)
    assert rows.tolist() == [int(x) for number in chosen for x in parts[number]]
    assert made.diff().tolist() == [lengths[number] for number in chosen]
