"""The loss over batch and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, EmbeddingMemory, MomentumEncoder, PairwiseLoss
from longview.ops.memory_loss import PAIR_LOSSES
from tests.metric_learning.helpers import WIDTH, drifting, memory, same, states


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_it_is_the_batch_term_plus_the_weighted_memory_term(name: str) -> None:
    loss, twin = CrossBatchLoss(name, memory({"kind": "axbn"}), memory_weight=0.5), memory({"kind": "axbn"})
    plain = PairwiseLoss(name)
    for z, labels, ids in drifting(8):
        anchors = functional.normalize(z, dim=1)
        reference = twin(anchors, labels, ids)
        expected = plain(anchors, labels)
        if len(reference):
            expected = expected + 0.5 * plain(anchors, labels, reference)
        torch.testing.assert_close(loss(z, labels, ids), expected)
    assert loss.parts is not None
    torch.testing.assert_close(loss.parts.batch + loss.parts.memory, expected)


def test_a_sample_never_meets_its_own_older_version() -> None:
    loss = CrossBatchLoss("contrastive", memory())
    z, labels, ids = drifting(1)[0]
    labels = torch.arange(8)  # the only positives are the samples themselves, one step older
    loss(z, labels, ids)
    loss(-z, labels, ids)
    assert loss.parts is not None
    with_ids = loss.parts.memory
    other = CrossBatchLoss("contrastive", memory())
    other(z, labels)
    other(-z, labels)
    assert other.parts is not None
    assert other.parts.memory - with_ids == pytest.approx(2.0)  # 1 - cos(180°) for each anchor


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_ids_leave_out_of_a_batch_what_positions_and_ids_would(name: str, backend: Any) -> None:
    plain = PairwiseLoss(name, backend=backend)
    loss = CrossBatchLoss(plain, memory(), memory_weight=0, normalise=False)
    for z, labels, ids in drifting(3):
        ids = ids % 5  # some samples are twice in the batch
        twin = functional.normalize(z, dim=1).requires_grad_()
        own = twin.detach().clone().requires_grad_()
        positions = torch.arange(len(labels))
        expected = plain(twin, labels, twin, labels, sample_ids=ids, reference_ids=ids, own_positions=positions)
        expected.backward()
        value = loss(own, labels, ids)
        value.backward()
        assert torch.equal(value, expected)
        assert torch.equal(own.grad, twin.grad)


def test_before_l2_the_memory_stores_raw_embeddings_and_the_loss_sees_cosines() -> None:
    raw = CrossBatchLoss("contrastive", memory(space="before-l2", renormalise=None))
    normalised = CrossBatchLoss("contrastive", memory())
    for z, labels, ids in drifting(5):
        torch.testing.assert_close(raw(z, labels, ids), normalised(z, labels, ids))
    torch.testing.assert_close(raw.memory.read().rows[-8:], z)
    with pytest.raises(InputError, match="before L2 needs normalise=True"):
        CrossBatchLoss("contrastive", memory(space="before-l2", renormalise=False))


@pytest.mark.parametrize("order", ["normalise-first", "enqueue-first"])
def test_either_order_leaves_self_pairs_out(order: str) -> None:
    loss = CrossBatchLoss("contrastive", memory(order=order))
    z, _, ids = drifting(1)[0]
    loss(z, torch.arange(8), ids)  # one row a class: no positive pair anywhere
    assert loss.parts is not None
    own = functional.normalize(z, dim=1)
    pairs = (own @ own.T - 0.5).clamp(min=0).fill_diagonal_(0).sum() / 8
    torch.testing.assert_close(loss.parts.batch, pairs)
    torch.testing.assert_close(loss.parts.memory, pairs if order == "enqueue-first" else pairs * 0)


def test_keys_of_a_momentum_encoder_are_what_is_stored() -> None:
    encoder = torch.nn.Linear(WIDTH, WIDTH).double()
    slow = MomentumEncoder(encoder, momentum=0.9)
    start = slow.encoder.weight.detach().clone()
    loss = CrossBatchLoss("contrastive", memory(), normalise=False)
    for x, labels, ids in drifting(2):
        loss(encoder(x), labels, ids, keys=slow(x)).backward()
        with torch.no_grad():
            encoder.weight.add_(1)
        slow.update(encoder)
    torch.testing.assert_close(slow.encoder.weight, start + 0.1 * 1 + 0.1 * 1.9)
    assert torch.equal(
        loss.memory.read().rows[:8], torch.nn.functional.linear(drifting(2)[0][0], start, slow.encoder.bias)
    )
    with pytest.raises(InputError, match="momentum=1"):
        MomentumEncoder(encoder, momentum=1.0)
    with pytest.raises(InputError, match="keys must be"):
        loss(encoder(x), labels, ids, keys=slow(x)[:4])


def test_a_refused_batch_changes_nothing() -> None:
    loss = CrossBatchLoss("circle", memory({"kind": "axbn"}))
    for batch in drifting(3):
        loss(*batch)
    before = states(loss)
    wrong: Any = drifting(1)[0][0].clone()
    wrong[3, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite in 1 of 8"):
        loss(wrong, *drifting(1)[0][1:])
    assert same(states(loss), before)
    with pytest.raises(InputError, match="weights must not be negative"):
        CrossBatchLoss("circle", memory(), memory_weight=-1)


def test_the_memory_makes_no_copy_for_a_loss() -> None:
    bank: EmbeddingMemory = memory({"kind": "axbn"})
    for batch in drifting(9):
        reference = bank(*batch)
    assert reference.rows.data_ptr() == bank.queue.rows.data_ptr()
