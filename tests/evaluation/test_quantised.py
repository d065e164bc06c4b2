"""A model with a quantised item table beside itself."""

from __future__ import annotations

import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.errors import InputError
from longview.evaluation.quantised import QuantisedItems
from longview.models.retriever import RetrieverConfig


def test_the_model_itself_is_untouched() -> None:
    model = RetrieverConfig(width=64, layers=1, max_length=8).build(300).eval()
    before = model.item_vectors().detach().clone()
    batch = batch_of_sequences([[1, 2, 3]])
    small, smaller = (QuantisedItems.of(model, name) for name in ("int8", "int4"))
    torch.testing.assert_close(model.item_vectors(), before, rtol=0, atol=0)
    errors = [float((one.model.item_vectors() - before).abs().max()) for one in (small, smaller)]
    assert 0 < errors[0] < errors[1] < float(before.abs().max()) / 8
    assert smaller.bytes < small.bytes < small.full_bytes == 300 * 64 * 4
    for one, near in ((small, 0.02), (smaller, 0.3)):
        moved = one.model.user_vectors(batch) - model.user_vectors(batch)
        assert 0 < float(moved.norm() / model.user_vectors(batch).norm()) < near


def test_how_far_metrics_moved() -> None:
    model = RetrieverConfig(width=64, layers=1, max_length=8).build(20)
    found = QuantisedItems.of(model, "int8").describe({"hr@10": 0.5, "ndcg@10": 0.0}, {"hr@10": 0.4, "ndcg@10": 0.1})
    assert found["drift"]["hr@10"]["relative"] == pytest.approx(-0.2)
    assert found["drift"]["ndcg@10"] == {"full": 0.0, "quantised": 0.1, "difference": 0.1, "relative": None}


def test_bad_input() -> None:
    model = RetrieverConfig(width=64, layers=1, max_length=8).build(20)
    with pytest.raises(InputError, match="choose int8 or int4"):
        QuantisedItems.of(model, "fp8")
    with torch.no_grad():
        model.embedding.items.weight[3, 0] = torch.nan
    with pytest.raises(InputError, match="row 3 has an infinity or a NaN"):
        QuantisedItems.of(model, "int8")
