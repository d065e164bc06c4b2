"""Context tokens: one a feature in front of each history, and out of the way again behind the stack."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.data.schema import Feature
from longview.models.context import ContextTokens, put_in_front, without_context
from longview.models.layout import Hidden, Layout
from longview.ops.jagged import offsets_from_lengths

FEATURES = (Feature(name="country", values=("DE", "FR")), Feature(name="age", values=("1", "2", "3")))

lengths = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def test_each_feature_has_rows_of_its_own() -> None:
    module = ContextTokens(FEATURES, 4)
    assert module.table.num_embeddings == 3 + 4
    tokens = module(torch.tensor([[1, 3], [2, 0]]), 2)
    assert torch.equal(tokens, module.table.weight[[1, 6, 2, 3]])


def test_unknown_says_nothing_at_first_and_is_what_a_user_without_features_has() -> None:
    module = ContextTokens(FEATURES, 4)
    assert not module(torch.zeros(2, 2, dtype=torch.int64), 2).any()
    assert torch.equal(module(None, 2), module(torch.zeros(2, 2, dtype=torch.int64), 2))


@settings(max_examples=25)
@given(history=lengths)
def test_sequences_get_their_context_in_front(history: list[int]) -> None:
    batch, total = len(history), sum(history)
    layout = Layout(
        offsets_from_lengths(torch.tensor(history)),
        max(history),
        timestamps=torch.arange(total) + 100,
        target_lengths=torch.zeros(batch, dtype=torch.int64),
        actions=torch.arange(total),
    )
    context, events = -torch.arange(1.0, 2 * batch + 1)[:, None], torch.arange(float(total))[:, None]
    found, placed = put_in_front(context, events, layout)
    assert placed.max_length == max(history) + 2
    at = 0
    for number, length in enumerate(history):
        row = found[placed.offsets[number] : placed.offsets[number + 1], 0].tolist()
        assert row == [-(2 * number + 1.0), -(2 * number + 2.0), *range(at, at + length)]
        at += length
    assert placed.timestamps is not None
    assert placed.timestamps[found[:, 0] >= 0].tolist() == list(range(100, 100 + total))
    back, rows = without_context(Hidden(found, placed))
    assert torch.equal(back, events)
    assert rows is None


@settings(max_examples=25)
@given(history=lengths, keep=st.integers(0, 3))
def test_what_a_truncation_keeps_is_counted_without_context(history: list[int], keep: int) -> None:
    total = sum(history)
    layout = Layout(offsets_from_lengths(torch.tensor(history)), max(history))
    context = torch.full((len(history), 1), -1.0)
    events = torch.arange(float(total))[:, None]
    tokens, placed = put_in_front(context, events, layout)
    rows, kept = placed.newest(len(tokens), keep)
    values, numbers = without_context(Hidden(tokens[rows], kept, rows))
    assert numbers is not None
    assert values[:, 0].tolist() == numbers.tolist(), "an event is known by its number in the batch"
    assert len(numbers) == sum(min(length, keep) for length in history)
