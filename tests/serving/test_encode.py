"""Encoding on several threads gives what encoding one by one gives, and leaves torch's settings alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from longview.models.retriever import Retriever, RetrieverConfig
from longview.serving import histories as histories_module
from longview.serving.encode import encode
from longview.serving.histories import Histories

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Retriever:
    torch.manual_seed(0)
    return RetrieverConfig(width=16, layers=2, heads=2, max_length=12).build(50).eval()


@pytest.fixture(scope="module")
def histories() -> Histories:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30, size=60)
    return Histories(generator.integers(50, size=lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))


def one_by_one(model: Retriever, histories: Histories) -> torch.Tensor:
    rows = []
    for start, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        alone = Histories(histories.items[start:end], np.array([0, end - start]))
        rows += [model.user_vectors(batch) for _, batch in alone.batches(model.max_length)]
    return torch.cat(rows)


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_every_history_gets_its_own_vector(
    model: Retriever, histories: Histories, tokens: int, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories_module, "TOKENS", tokens)
    found = encode(model, histories, CPU)
    torch.testing.assert_close(found, one_by_one(model, histories), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_the_number_of_threads_is_as_it_was(
    model: Retriever, histories: Histories, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories_module, "TOKENS", 40)
    encode(model, histories, CPU)
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_raised_and_the_threads_are_put_back(
    histories: Histories, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        max_length = 12

        def user_vectors(self, batch: object) -> torch.Tensor:
            raise ZeroDivisionError

        def item_vectors(self) -> torch.Tensor:
            raise NotImplementedError

    monkeypatch.setattr(histories_module, "TOKENS", 40)
    with pytest.raises(ZeroDivisionError):
        encode(Broken(), histories, CPU)
    assert torch.get_num_threads() == 2
