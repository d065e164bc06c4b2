"""The input embedding: what an event's vector tells does not depend on who else is in the batch."""

from __future__ import annotations

import pytest
import torch

from longview.data.batches import JaggedBatch
from tests.models.histories import build, histories, together

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOBODY = JaggedBatch(
    items=torch.empty(0, dtype=torch.int64),
    offsets=torch.tensor([0, 0]),
    timestamps=torch.empty(0, dtype=torch.int64),
    actions=torch.empty(0, dtype=torch.int64),
)


@pytest.mark.parametrize("time_gaps", ["previous", "newest"])
@pytest.mark.parametrize("order", ["first", "in between", "last"])
def test_a_history_without_events_changes_nothing(time_gaps: str, order: str) -> None:
    embedding = build(embedding={"positions": "start", "time_gaps": time_gaps}).embedding.to(DEVICE)
    one, other = histories([5, 9])
    users = {"first": [NOBODY, one, other], "in between": [one, NOBODY, other], "last": [one, other, NOBODY]}[order]
    assert torch.equal(embedding(together(users).to(DEVICE)), embedding(together([one, other]).to(DEVICE)))


@pytest.mark.parametrize("time_gaps", ["previous", "newest"])
def test_no_events_at_all_have_no_vectors(time_gaps: str) -> None:
    model = build(embedding={"positions": "start", "time_gaps": time_gaps})
    assert model.embedding.to(DEVICE)(NOBODY.to(DEVICE)).shape == (0, 16)
