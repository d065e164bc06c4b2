"""A model with 8-bit products beside itself."""

from __future__ import annotations

import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.errors import InputError
from longview.evaluation.eight_bit import EightBitProducts
from longview.models.retriever import RetrieverConfig


def test_products_in_8_bits_move_vectors_a_little() -> None:
    model = RetrieverConfig(width=64, layers=2, max_length=8).build(300).eval()
    batch = batch_of_sequences([[1, 2, 3], [4, 5]])
    before = model.user_vectors(batch)
    other = EightBitProducts.of(model, "fp8")
    assert torch.equal(model.user_vectors(batch), before)
    moved = other.model.user_vectors(batch) - before
    assert 1e-4 < float(moved.norm() / before.norm()) < 0.25
    assert other.describe({"hr@10": 0.5}, {"hr@10": 0.4})["layers"] == 2


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "fp4", r"precision 'fp4' \(did you mean 'fp8'\?\): choose fp8"),
        ({"kind": "sasrec"}, "fp8", "no HSTU layers"),
        ({"layer": {"precision": "fp8"}}, "fp8", "has FP8 products already"),
    ],
)
def test_products_that_cannot_be_exchanged(settings: dict[str, object], name: str, message: str) -> None:
    model = RetrieverConfig.model_validate({"width": 64, "layers": 1, "max_length": 8, **settings}).build(20)
    with pytest.raises(InputError, match=message):
        EightBitProducts.of(model, name)
