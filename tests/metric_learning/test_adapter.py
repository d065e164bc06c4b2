"""Our memory around a loss of pytorch-metric-learning: a stand-in of its interface, and the package where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, PairwiseLoss, RememberingLoss
from longview.metric_learning.adapter import without_own
from longview.ops.memory_loss import ContrastiveLoss
from tests.metric_learning.helpers import drifting, memory


class StandIn(torch.nn.Module):
    """The contrastive loss of cosines, summed over pairs and divided by anchors, as that package calls losses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        self.calls.append((indices_tuple, ref_emb, ref_labels))
        own = ref_emb is None
        rows, classes = (embeddings, labels) if ref_emb is None or ref_labels is None else (ref_emb, ref_labels)
        cosine = functional.normalize(embeddings, dim=1) @ functional.normalize(rows, dim=1).T
        same = labels[:, None] == classes[None]
        if indices_tuple is None:
            other = ~torch.eye(len(labels), dtype=torch.bool) if own else torch.ones_like(same)
            indices_tuple = (*torch.where(same & other), *torch.where(~same))
        a, p, b, n = indices_tuple
        return ((1 - cosine[a, p]).sum() + (cosine[b, n] - 0.5).clamp(min=0).sum()) / len(labels)


@pytest.mark.parametrize("order", ["normalise-first", "enqueue-first"])
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("drift", ["none", "axbn"])
def test_one_line_around_a_loss_gives_what_our_own_loss_gives(drift: str, with_ids: bool, order: str) -> None:
    settings: Any = {"order": order, "renormalise": True, "age_limit": 3}
    theirs = RememberingLoss(StandIn(), memory({"kind": drift}, **settings))
    ours = CrossBatchLoss(PairwiseLoss(ContrastiveLoss()), memory({"kind": drift}, **settings))
    for z, labels, ids in drifting(8):
        given = ids % 20 if with_ids else None  # samples come back while they are remembered
        one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
        got, expected = theirs(one, labels, sample_ids=given), ours(other, labels, given)
        torch.testing.assert_close(got, expected)
        got.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, other.grad)


def test_indices_are_for_the_batch_and_a_miner_for_the_memory() -> None:
    loss, seen = StandIn(), []

    def miner(z: Tensor, labels: Tensor, rows: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(rows))
        same = labels[:, None] == classes[None]
        return (*torch.where(same), *torch.where(~same))

    remembering = RememberingLoss(loss, memory(), miner=miner)
    mine = tuple(torch.zeros(0, dtype=torch.int64) for _ in range(4))
    for z, labels, _ in drifting(2):
        remembering(z, labels, mine)
    assert seen == [8]
    assert loss.calls[0][0] is mine
    assert len(loss.calls) == 3  # a batch without a memory, a batch, and the memory
    assert loss.calls[2][1].shape == (8, 6)


def test_a_sample_is_taken_out_of_pairs_and_triplets() -> None:
    a, p, n = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
    anchors, rows = torch.tensor([7, 8]), torch.tensor([7, 9, 8])
    assert [t.tolist() for t in without_own((a, p, n), anchors, rows)] == [[], [], []]
    pairs = without_own((a, p, a, n), anchors, rows)
    assert [t.tolist() for t in pairs] == [[0, 1], [1, 1], [0], [1]]
    with pytest.raises(InputError, match="got 2"):
        without_own((a, p), anchors, rows)


def test_what_the_memory_refuses_and_a_second_reference_are_refused() -> None:
    remembering = RememberingLoss(StandIn(), memory())
    z, labels, _ = drifting(1)[0]
    with pytest.raises(InputError, match="the reference of this loss is its memory"):
        remembering(z, labels, None, z, labels)
    with pytest.raises(InputError, match="labels are negative"):
        remembering(z, labels - 100)
    bad: Any
    for bad in (z[0], z.long(), z.numpy(), z.tolist()):
        with pytest.raises(InputError, match="embeddings must be"):
            remembering(bad, labels)
    assert len(remembering.memory) == 0
    with pytest.raises(InputError, match="distributed must be 'local'"):
        RememberingLoss(StandIn(), memory(distributed="replicated"))


@pytest.mark.parametrize(
    "name", ["ContrastiveLoss", "MultiSimilarityLoss", "SupConLoss", "TripletMarginLoss", "CircleLoss"]
)
def test_losses_of_the_package_itself(name: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    remembering = RememberingLoss(getattr(losses, name)(), memory({"kind": "axbn"}, renormalise=True))
    for z, labels, ids in drifting(8):
        z = z.requires_grad_()
        value = remembering(z, labels, sample_ids=ids % 20)
    value.backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0
