"""Padding fills a batch to one of few shapes and touches nothing that is real."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.data.batches import JaggedBatch, batch_of_sequences
from longview.data.padding import Capacity, capacity_for, fixed_size, padded, vacant_sequences
from longview.errors import InputError
from longview.ops.jagged import history_ages

LONGEST = 7
LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=60)


def batch_of(lengths: list[int]) -> JaggedBatch:
    total = sum(lengths)
    columns = {name: torch.arange(total) + start for name, start in (("timestamps", 1000), ("targets", 1))}
    return batch_of_sequences([[5] * n for n in lengths], **columns)


@given(LENGTHS)
def test_real_rows_stay_and_padding_follows_in_sequences_of_its_own(lengths: list[int]) -> None:
    batch = batch_of(lengths)
    capacity = capacity_for(batch, LONGEST)
    filled = padded(batch, capacity, LONGEST)
    assert (filled.num_tokens, filled.num_sequences) == capacity[:2]
    for name in ("items", "timestamps", "targets"):
        assert torch.equal(getattr(filled, name)[: batch.num_tokens], getattr(batch, name))
        assert getattr(filled, name).shape == (capacity.tokens,)
    assert torch.equal(filled.offsets[: batch.num_sequences + 1], batch.offsets)
    assert filled.offsets[-1] == capacity.tokens
    assert 0 <= int(filled.offsets.diff().min()) <= int(filled.offsets.diff().max()) <= LONGEST
    assert filled.counted is not None
    assert filled.counted.tolist() == [i < batch.num_tokens for i in range(capacity.tokens)]
    assert not filled.counted[-1], "an empty sequence at the very end would share the last real token's place"


def test_what_did_not_count_before_does_not_count_in_a_padded_batch() -> None:
    batch = replace(batch_of([3, 2]), counted=torch.tensor([True, False, True, False, False]))
    counted = padded(batch, Capacity(16, 4), LONGEST).counted
    assert counted is not None
    assert counted.tolist() == [True, False, True] + [False] * 13


@given(tokens=st.integers(1, 10**6), sequences=st.integers(1, 4096), longest=st.integers(1, 10**4))
def test_a_capacity_wastes_less_than_an_eighth_and_always_suffices(tokens: int, sequences: int, longest: int) -> None:
    sequences = min(sequences, tokens)
    batch = JaggedBatch(torch.empty(tokens, dtype=torch.int8), torch.empty(sequences + 1))
    capacity = capacity_for(batch, longest)
    assert tokens < capacity.tokens <= max(tokens + 16, 1 + 1.125 * tokens)
    assert capacity.tokens - tokens <= (capacity.sequences - sequences) * longest
    assert capacity.tokens % 16 == 0


def test_batches_of_a_data_set_have_few_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    totals = torch.randint(13_000, 17_000, (500,), generator=generator).tolist()
    batches = [JaggedBatch(torch.empty(n, dtype=torch.int8), torch.empty(129)) for n in totals]
    assert len({capacity_for(batch, 200) for batch in batches}) <= 6


def test_a_time_of_padding_is_that_of_the_last_event() -> None:
    filled = padded(batch_of([3]), Capacity(16, 4), LONGEST)
    assert filled.timestamps is not None
    assert set(filled.timestamps[3:].tolist()) == {1002}


def test_absent_columns_stay_absent() -> None:
    filled = padded(batch_of_sequences([[1, 2]]), Capacity(16, 4), LONGEST)
    assert filled.timestamps is None
    assert filled.actions is None
    assert filled.targets is None


@pytest.mark.parametrize("capacity", [Capacity(2, 4), Capacity(16, 1), Capacity(160, 4)])
def test_a_batch_that_does_not_fit_is_refused(capacity: Capacity) -> None:
    with pytest.raises(InputError, match=f"3 tokens in 1 sequences cannot be padded to {capacity.tokens}"):
        padded(batch_of([3]), capacity, LONGEST)


def test_context_of_padding_is_unknown() -> None:
    batch = batch_of_sequences([[1, 2], [3]], context=torch.tensor([[4, 5], [6, 7]]))
    filled = padded(batch, Capacity(16, 6), LONGEST)
    assert filled.context is not None
    assert filled.context.tolist() == [[4, 5], [6, 7], *[[0, 0]] * 4]


@given(st.lists(st.tuples(st.integers(0, LONGEST), st.integers(1, 3)), min_size=1, max_size=60))
def test_candidates_of_padding_are_the_last_tokens_and_nothing_is_known_of_them(parts: list[tuple[int, int]]) -> None:
    """Histories of 0 to 7 events with 1 to 3 candidates behind each."""
    counts = torch.tensor([count for _, count in parts])
    batch = batch_of_sequences(
        [[1] * (events + count) for events, count in parts],
        target_lengths=counts,
        labels=torch.arange(2.0 * int(counts.sum())).view(-1, 2),
    )
    capacity = capacity_for(batch, LONGEST)
    filled = padded(batch, capacity, LONGEST, candidates=3)
    assert filled.max_length == LONGEST + 3
    assert filled.labels is not None
    assert filled.target_lengths is not None
    assert batch.labels is not None
    assert len(filled.labels) == capacity.candidates == int(filled.target_lengths.sum())
    assert torch.equal(filled.labels[: len(batch.labels)], batch.labels)
    assert bool(filled.labels[len(batch.labels) :].isnan().all())
    assert torch.equal(filled.target_lengths[: len(parts)], counts)
    lengths = filled.offsets.diff()
    assert bool((filled.target_lengths <= lengths).all())
    assert int(lengths[len(parts) :].max()) <= LONGEST
    ahead = history_ages(filled.offsets, filled.num_tokens, filled.target_lengths) < 0
    more = capacity.candidates - len(batch.labels)
    assert torch.equal(
        ahead[batch.num_tokens :], torch.arange(batch.num_tokens, capacity.tokens) >= capacity.tokens - more
    )


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_rows_a_model_selects_have_few_sizes_and_room_for_what_is_missing(rows: int, longest: int) -> None:
    size = fixed_size(rows)
    assert rows <= size <= max(16, rows + 16, 1.25 * rows)
    assert size % 16 == 0
    assert size - rows <= vacant_sequences(size, longest) * longest
    assert fixed_size(size) == size


def test_a_batch_that_was_on_its_way_to_a_device_can_be_padded() -> None:
    batch = batch_of([3]).to("cpu")
    assert padded(batch, Capacity(16, 4), LONGEST).num_tokens == 16
