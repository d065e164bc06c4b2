"""Losses as modules: the batch against itself, against tensors, against a memory; class-weight baselines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning import ArcFaceLoss, ClassWeightLoss, NormalisedSoftmaxLoss, PairwiseLoss, ProxyAnchorLoss
from longview.ops.memory_loss import PAIR_LOSSES, ContrastiveLoss, memory_loss
from tests.metric_learning.helpers import drifting, memory

NAMES = sorted(PAIR_LOSSES)
CLASS_LOSSES = [NormalisedSoftmaxLoss, ArcFaceLoss, ProxyAnchorLoss]


def batch(rows: int = 8, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    z = functional.normalize(torch.randn(rows, width, generator=source, dtype=torch.float64), dim=1)
    return z.requires_grad_(), torch.arange(rows) // 2


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_meets_itself_without_self_pairs_and_both_sides_learn(name: str) -> None:
    z, labels = batch()
    PairwiseLoss(name)(z, labels).backward()
    again, _ = batch()
    places = torch.arange(len(labels))
    settings = {"loss": PAIR_LOSSES[name](), "own_positions": places, "backend": "reference"}
    memory_loss(again, labels, again, labels, **settings).backward()
    torch.testing.assert_close(z.grad, again.grad)
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_of_tensors_and_the_memory_itself_give_the_same(name: str) -> None:
    bank = memory({"kind": "axbn"}, renormalise=True)
    for z, labels, ids in drifting(6):
        reference = bank(z, labels, ids)
    z = functional.normalize(z, dim=1)
    ids = ids.clone()
    ids[:3] = reference.sample_ids[:3]
    direct = PairwiseLoss(name)(
        z, labels, reference.embeddings(), reference.labels, sample_ids=ids, reference_ids=reference.sample_ids
    )
    object.__setattr__(reference, "anchor_ids", ids)
    torch.testing.assert_close(PairwiseLoss(name)(z, labels, reference), direct)


def test_equal_sample_ids_are_left_out() -> None:
    z = torch.tensor([[1.0, 0.0]])
    rows, same = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    loss = PairwiseLoss("contrastive", reduction="sum")
    assert loss(z, same[:1], rows, same).item() == 1
    ids = torch.tensor([5, 6])
    assert loss(z, same[:1], rows, same, sample_ids=ids[1:], reference_ids=ids).item() == 0


def test_what_does_not_fit_is_named() -> None:
    z, labels = batch()
    with pytest.raises(InputError, match="did you mean 'contrastive'"):
        PairwiseLoss("contrastiv")
    with pytest.raises(InputError, match="needs reference_labels"):
        PairwiseLoss("circle")(z, labels, z.detach())
    with pytest.raises(InputError, match="number names of classes"):
        PairwiseLoss("circle")(z, ["a"] * 8)  # type: ignore[arg-type]
    bank = memory()
    for rows, classes, ids in drifting(3):
        reference = bank(rows, classes, ids)
    with pytest.raises(InputError, match="read for a batch of 8 rows and the loss has 4"):
        PairwiseLoss("circle")(z[:4], labels[:4], reference)


def test_a_loss_is_a_setting() -> None:
    assert PairwiseLoss(ContrastiveLoss(negative_margin=0.3)).loss == ContrastiveLoss(negative_margin=0.3)


def cosines(loss: ClassWeightLoss, z: Tensor) -> Tensor:
    return functional.normalize(z, dim=1) @ functional.normalize(loss.weight, dim=1).T


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_class_losses_pass_gradcheck(kind: type[ClassWeightLoss]) -> None:
    torch.manual_seed(0)
    loss = kind(5, 6).double()
    z, labels = batch()
    weight = loss.weight.detach().clone().requires_grad_()

    def value(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"weight": w}, (x, labels))

    assert torch.autograd.gradcheck(value, (z, weight), atol=1e-4)


def test_normalised_softmax_is_cross_entropy_of_cosines() -> None:
    loss = NormalisedSoftmaxLoss(5, 6, temperature=0.1).double()
    z, labels = batch()
    torch.testing.assert_close(loss(z, labels), functional.cross_entropy(cosines(loss, z) / 0.1, labels))


def test_arcface_widens_the_own_angle() -> None:
    loss = ArcFaceLoss(5, 6, margin=0.3, scale=16.0).double()
    z, labels = batch()
    angle = cosines(loss, z).clamp(-1, 1).acos()
    own = functional.one_hot(labels, 5).bool()
    widened = torch.where(own & (angle < math.pi - 0.3), (angle + 0.3).cos(), angle.cos())
    assert bool((angle[own] < math.pi - 0.3).all())
    torch.testing.assert_close(loss(z, labels), functional.cross_entropy(16 * widened, labels))
    assert loss(z, labels) > ArcFaceLoss.forward(_without_margin(loss), z, labels)


def _without_margin(loss: ArcFaceLoss) -> ArcFaceLoss:
    plain = ArcFaceLoss(5, 6, margin=0.0, scale=16.0).double()
    plain.load_state_dict(loss.state_dict())
    return plain


def test_proxy_anchor_is_its_equation() -> None:
    loss = ProxyAnchorLoss(5, 6).double()
    z, labels = batch()  # classes 0 to 3; class 4 has no row
    s, alpha, delta = cosines(loss, z), 32.0, 0.1
    pulled = [torch.log(1 + torch.exp(-alpha * (s[labels == c, c] - delta)).sum()) for c in range(4)]
    pushed = [torch.log(1 + torch.exp(alpha * (s[labels != c, c] + delta)).sum()) for c in range(5)]
    torch.testing.assert_close(loss(z, labels), sum(pulled) / 4 + sum(pushed) / 5)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_class_losses_refuse_a_reference_and_labels_without_a_class(kind: type[ClassWeightLoss]) -> None:
    loss = kind(5, 6).double()
    z, labels = batch()
    with pytest.raises(InputError, match="takes no reference"):
        loss(z, labels, z.detach(), labels)
    with pytest.raises(InputError, match="labels run from 2 to 5, and there are 5 classes"):
        loss(z, labels + 2)
    with pytest.raises(InputError, match="at least 2 classes"):
        kind(1, 6)
