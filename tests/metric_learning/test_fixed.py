"""Steps of a memory as the same operations each time equal the steps that look at their batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, MemoryConfig
from longview.ops.memory_loss import ContrastiveLoss

BATCH, WIDTH = 6, 5
POLICIES: list[dict[str, Any]] = [
    {"drift": {"kind": "none"}},
    {"drift": {"kind": "none"}, "renormalise": True},
    {"drift": {"kind": "xbn"}},
    {"drift": {"kind": "axbn"}},
    {"drift": {"kind": "axbn", "noise": "constant", "filter": "variance", "gain": "dimension"}},
    {"drift": {"kind": "moving-average"}},
    {"drift": {"kind": "axbn"}, "order": "enqueue-first"},
    {"drift": {"kind": "axbn"}, "age_limit": 2},
    {"drift": {"kind": "xbn"}, "space": "before-l2"},
    {"drift": {"kind": "axbn"}, "storage": "float64"},
]


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(BATCH, WIDTH, generator=generator) + 0.1 * step
    labels = torch.arange(BATCH) // 2 + step % 2
    return z, labels, (torch.arange(BATCH) + BATCH * step) % 31


def build(**settings: Any) -> CrossBatchLoss:
    config = MemoryConfig(capacity=20, width=WIDTH, **settings)
    return CrossBatchLoss(ContrastiveLoss(negative_margin=0.3), config)


def train(loss: CrossBatchLoss, first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    for step in range(first, last):
        z, labels, ids = batch(step)
        z.requires_grad_()
        value = loss(z, labels, ids)
        (gradient,) = torch.autograd.grad(value, z)
        found.append((value.detach(), gradient))
        if loss.fixed is not None:
            loss.fixed.enqueue()
            loss.fixed.advance()
    return found


@pytest.mark.parametrize("settings", POLICIES, ids=str)
def test_losses_gradients_and_memory_equal_those_of_ordinary_steps(settings: dict[str, Any]) -> None:
    ordinary, fixed = build(**settings), build(**settings)
    expected = train(ordinary, 0, 9)
    train(fixed, 0, 2)
    fixed.fix(BATCH)
    for (value, gradient), (other, other_gradient) in zip(expected[2:], train(fixed, 2, 9), strict=True):
        torch.testing.assert_close(other, value)
        torch.testing.assert_close(other_gradient, gradient)
    fixed.release()
    ordinary.memory.read()  # the newest batch enters the ring, as it has there
    for (name, one), other in zip(ordinary.state_dict().items(), fixed.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, msg=lambda text, name=name: f"{name}: {text}")


def test_ordinary_steps_go_on_where_fixed_ones_ended() -> None:
    ordinary, fixed = build(), build()
    expected = train(ordinary, 0, 12)
    train(fixed, 0, 3)
    fixed.fix(BATCH)
    train(fixed, 3, 7)
    fixed.release()
    for (value, _), (other, _) in zip(expected[7:], train(fixed, 7, 12), strict=True):
        torch.testing.assert_close(other, value)


def test_embeddings_that_are_no_numbers_leave_the_memory_as_it_was() -> None:
    loss = build()
    train(loss, 0, 3)
    fixed = loss.fix(BATCH)
    before = {name: value.clone() for name, value in loss.memory.state_dict().items()}
    z, labels, ids = batch(3)
    z[1, 2] = torch.nan
    assert loss(functional.normalize(z, dim=1), labels, ids).isnan()
    fixed.enqueue()
    for name, value in loss.memory.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert int(fixed.entered) == int(loss.memory.queue.cursor) == 3 * BATCH


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({}, 0, "first steps"),
        ({"warmup_steps": 5}, 3, "first steps"),
        ({"drift": {"kind": "xbn", "anchor": "memory"}}, 3, "anchor memory"),
        ({"distributed": "sharded"}, 3, "distributed sharded"),
    ],
)
def test_memories_whose_steps_differ_are_refused(settings: dict[str, Any], steps: int, message: str) -> None:
    loss = build(**settings)
    train(loss, 0, steps)
    with pytest.raises(InputError, match=message):
        loss.fix(BATCH)
