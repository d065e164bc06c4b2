"""The retrieval model: what its vectors mean, and what cannot influence them."""

from __future__ import annotations

import pytest
import torch

from longview.config import parse
from longview.data.batches import JaggedBatch, batch_of_sequences
from longview.errors import InputError
from longview.models.embeddings import Earlier
from longview.models.interface import VectorRecommender
from longview.models.retriever import Retriever, RetrieverConfig

SEQUENCES = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
KINDS = ["hstu", "sasrec"]


def build(**options: object) -> Retriever:
    torch.manual_seed(0)
    values = {"width": 16, "heads": 2, "max_length": 8, **options}
    return RetrieverConfig.model_validate(values).build(num_items=10).eval()


def timed(sequences: list[list[int]]) -> JaggedBatch:
    total = sum(map(len, sequences))
    return batch_of_sequences(sequences, timestamps=torch.arange(total) * 3600)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_interface(kind: str) -> None:
    model = build(kind=kind)
    batch = batch_of_sequences(SEQUENCES)
    assert isinstance(model, VectorRecommender)
    assert model(batch).shape == (9, 16)
    assert model.user_vectors(batch).shape == (3, 16)
    assert model.item_vectors().shape == (10, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_user_vector_is_the_query_of_the_newest_event(kind: str) -> None:
    model, batch = build(kind=kind), batch_of_sequences(SEQUENCES)
    torch.testing.assert_close(model.user_vectors(batch), model(batch)[batch.offsets[1:] - 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_scores_alike_alone_and_in_company(kind: str) -> None:
    model = build(kind=kind)
    together = model.user_vectors(batch_of_sequences(SEQUENCES))
    for row, sequence in zip(together, SEQUENCES, strict=True):
        alone = model.user_vectors(batch_of_sequences([sequence]))[0]
        torch.testing.assert_close(row, alone, rtol=1e-5, atol=1e-6)


def test_positions_count_back_from_the_newest_event() -> None:
    """Cutting old events off leaves the positions of those that stay."""
    model = build(layers=1)
    rows = model.embedding(batch_of_sequences([[1, 2, 3, 4]]))
    cut = model.embedding(batch_of_sequences([[3, 4]]))
    assert torch.equal(rows[2:], cut)


def test_positions_from_the_start_stay_where_they_are() -> None:
    """New events leave the positions of earlier ones; beyond the table they share its last row."""
    model = build(embedding={"positions": "start"}, max_length=3)
    rows = model.embedding(batch_of_sequences([[1, 1, 1, 1, 1]]))
    assert torch.equal(rows[:2], model.embedding(batch_of_sequences([[1, 1]])))
    assert not torch.equal(rows[1], rows[2])
    assert torch.equal(rows[2], rows[4])


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_events_that_continue_histories_are_embedded_as_in_the_whole(cut: int) -> None:
    model = build(embedding={"positions": "start", "time_gaps": "previous"})
    whole = timed([[3, 1, 4, 1, 5]])
    assert whole.timestamps is not None
    rest = batch_of_sequences([[3, 1, 4, 1, 5][cut:]], timestamps=whole.timestamps[cut:])
    earlier = Earlier(torch.tensor([cut]), whole.timestamps[cut - 1 : cut] if cut else torch.tensor([-999]))
    assert torch.equal(model.embedding(rest, earlier), model.embedding(whole)[cut:])


def test_normalised_vectors_have_length_one() -> None:
    model = build(normalise=True)
    for vectors in (model(batch_of_sequences(SEQUENCES)), model.item_vectors()):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


@pytest.mark.parametrize("gaps", ["previous", "newest"])
def test_time_gaps_enter_the_input(gaps: str) -> None:
    model = build(embedding={"time_gaps": gaps})
    batch = timed(SEQUENCES)
    slower = timed(SEQUENCES)
    assert slower.timestamps is not None
    slower.timestamps.mul_(30)
    assert not torch.allclose(model(batch), model(slower))


def test_gap_to_the_previous_event_starts_anew_with_every_sequence() -> None:
    model = build(embedding={"time_gaps": "previous"})
    together = model.embedding(timed(SEQUENCES))
    second = timed(SEQUENCES[1:2])
    assert torch.equal(together[5:6], model.embedding(second))


def test_event_dropout_hides_whole_items_in_training_only() -> None:
    model = build(embedding={"positions": False, "dropout": 0.0, "event_dropout": 0.5})
    batch = batch_of_sequences([[1] * 8] * 50, max_length=8)
    assert (model.embedding(batch).abs().sum(1) > 0).all()
    model.train()
    hidden = model.embedding(batch).abs().sum(1) == 0
    assert 0.35 < hidden.float().mean() < 0.65


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 10, "heads": 3}, "not a multiple"),
        ({"layer": {"outptu": "gated"}}, "did you mean 'output'"),
        ({"dropout": 1.5}, "dropout"),
        ({"kind": "gru4rec"}, "kind"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(RetrieverConfig, values, "model.yaml")


def test_lookups_on_a_cpu_are_torchs_own() -> None:
    model, batch = build(embedding={"time_gaps": "newest", "dropout": 0.0}), timed(SEQUENCES)
    table, upstream = model.embedding, torch.randn(9, 16)
    found = torch.autograd.grad(table(batch), table.items.weight, upstream)[0]
    expected = torch.autograd.grad(table.items(batch.items) * table.factor, table.items.weight, upstream)[0]
    assert torch.equal(found, expected)


def test_the_items_gradient_may_be_sparse() -> None:
    model, batch = build(), batch_of_sequences(SEQUENCES)
    upstream = torch.randn(9, 16)
    weight = model.embedding.items.weight
    dense = torch.autograd.grad(model.embedding(batch), weight, upstream)[0]
    model.embedding.sparse_items = True
    model.embedding(batch).backward(upstream)
    assert weight.grad is not None
    assert weight.grad.is_sparse
    torch.testing.assert_close(weight.grad.to_dense(), dense)
    assert set(model.state_dict()) == set(build().state_dict())
