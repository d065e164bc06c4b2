"""The losses equal those of pytorch-metric-learning where the definitions coincide."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longview.ops.memory_loss import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
    memory_loss,
)
from tests.ops.memory_loss.helpers import Arguments, problem

peer = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")


def balanced() -> Arguments:
    """Return a problem in float64 in which every anchor has as many positives."""
    z, _, memory, _ = (t.cpu().double() for t in problem(12, 60, 8))
    return z, torch.arange(12) % 6, memory, torch.arange(60) % 6


def theirs(loss: Any, given: Arguments, miner: Any = None) -> tuple[float, torch.Tensor]:
    z = given[0].detach().requires_grad_()
    indices = None if miner is None else miner(z, given[1], given[2], given[3])
    value = loss(z, given[1], indices, ref_emb=given[2], ref_labels=given[3])
    value.backward()
    assert z.grad is not None
    return value.item(), z.grad


def ours(given: Arguments, **options: Any) -> tuple[float, torch.Tensor]:
    z = given[0].detach().requires_grad_()
    # Their similarities are of normalised vectors, and so are their gradients.
    value = memory_loss(torch.nn.functional.normalize(z, dim=1), *given[1:], **options)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return value.item(), z.grad


def assert_same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_contrastive() -> None:
    from pytorch_metric_learning import distances, losses, reducers

    cosine, given = distances.CosineSimilarity(), balanced()
    mean = losses.ContrastiveLoss(1.0, 0.2, distance=cosine)
    loss = ContrastiveLoss(positive_margin=1.0, negative_margin=0.2)
    assert_same(ours(given, loss=loss, reduction="mean_active"), theirs(mean, given))
    total = losses.ContrastiveLoss(1.0, 0.2, distance=cosine, reducer=reducers.SumReducer())
    assert_same(ours(given, loss=loss, reduction="sum"), theirs(total, given))


@pytest.mark.parametrize(("positive", "negative"), [("hard", "hard"), ("hard", "semihard"), ("easy", "semihard")])
def test_triplet(positive: str, negative: str) -> None:
    from pytorch_metric_learning import distances, losses, miners

    cosine, given = distances.CosineSimilarity(), balanced()
    loss = losses.TripletMarginLoss(margin=0.2, distance=cosine)
    miner = miners.BatchEasyHardMiner(positive, negative, distance=cosine)
    words: dict[str, Any] = {"hard": "hardest", "semihard": "semi-hard", "easy": "easiest"}
    mine = TripletLoss(margin=0.2, positive=words[positive], negative=words[negative])
    assert_same(ours(given, loss=mine, reduction="mean_active"), theirs(loss, given, miner))


def test_multi_similarity() -> None:
    from pytorch_metric_learning import losses

    given = balanced()
    assert_same(ours(given, loss=MultiSimilarityLoss()), theirs(losses.MultiSimilarityLoss(), given))


def test_info_nce() -> None:
    from pytorch_metric_learning import losses

    given = balanced()
    assert_same(ours(given, loss=InfoNCELoss(temperature=0.2)), theirs(losses.NTXentLoss(temperature=0.2), given))


def test_supervised_contrastive() -> None:
    from pytorch_metric_learning import losses

    given, loss = balanced(), SupervisedContrastiveLoss(temperature=0.2)
    assert_same(ours(given, loss=loss, reduction="mean_active"), theirs(losses.SupConLoss(temperature=0.2), given))


def test_circle() -> None:
    from pytorch_metric_learning import losses

    given, loss = balanced(), CircleLoss(margin=0.3, gamma=20)
    assert_same(ours(given, loss=loss, reduction="mean_active"), theirs(losses.CircleLoss(m=0.3, gamma=20), given))


def test_their_memory_leaves_out_the_anchor_itself_as_positions_do() -> None:
    from pytorch_metric_learning import distances, losses

    z, labels, memory, memory_labels = balanced()
    loss = losses.ContrastiveLoss(1.0, 0.2, distance=distances.CosineSimilarity())
    xbm = losses.CrossBatchMemory(loss, 8, 100)
    xbm(memory, memory_labels)
    x = z.clone().requires_grad_()
    value = xbm(x, labels)
    value.backward()
    assert x.grad is not None
    everything = torch.cat([memory, z]), torch.cat([memory_labels, labels])
    mine = ours(
        (z, labels, *everything),
        loss=ContrastiveLoss(positive_margin=1.0, negative_margin=0.2),
        own_positions=torch.arange(60, 72),
        reduction="mean_active",
    )
    assert_same(mine, (value.item(), x.grad))
