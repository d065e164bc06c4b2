"""The multi-task head: what it predicts at first, and what each label costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from longview.data.labels import Task
from longview.models.heads import HeadConfig, MultiTaskHead, task_losses

LIKE = Task(name="like", action="like", mean=0.2, deviation=0.4)
STARS = Task(name="stars", strength="rating", mean=3.5, deviation=2.0)
UNKNOWN = math.nan


@pytest.mark.parametrize("config", [HeadConfig(), HeadConfig(trunk=(), tower=(), item_bias=False)])
def test_at_first_it_predicts_rate_and_mean_for_everything(config: HeadConfig) -> None:
    head = MultiTaskHead(config, 8, [LIKE, STARS], num_items=5).eval()
    predictions = head.predictions(head(torch.randn(4, 8), torch.tensor([0, 1, 4, 4])))
    assert torch.allclose(predictions, torch.tensor([0.2, 3.5], dtype=torch.float64).expand(4, 2), atol=1e-6)


def test_an_item_bias_moves_its_item_alone() -> None:
    head = MultiTaskHead(HeadConfig(), 8, [LIKE, STARS], num_items=5).eval()
    assert head.item_bias is not None
    with torch.no_grad():
        head.item_bias.weight[2, 0] = 0.1
    x, items = torch.randn(3, 8), torch.tensor([1, 2, 3])
    moved = head(x, items) - MultiTaskHead.forward(head, x, torch.zeros(3, dtype=torch.int64))
    assert moved[1, 0] > 0
    assert not moved[[0, 2]].any()
    assert not moved[:, 1].any()


def test_losses_are_cross_entropy_and_absolute_error_in_deviations() -> None:
    outputs = torch.tensor([[0.3, 0.5], [-1.0, 0.0]])
    labels = torch.tensor([[1.0, 3.5], [0.0, 7.5]])
    found = task_losses(outputs, labels, [LIKE, STARS])
    entropy = F.binary_cross_entropy_with_logits(outputs[:, 0], labels[:, 0])
    assert found.tolist() == pytest.approx([entropy.item(), (0.5 + 2.0) / 2])


def test_an_unknown_label_costs_nothing_and_teaches_nothing() -> None:
    outputs = torch.tensor([[0.3, 0.5], [-1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([[1.0, UNKNOWN], [UNKNOWN, UNKNOWN]])
    found = task_losses(outputs, labels, [LIKE, STARS])
    assert found.tolist() == pytest.approx([F.softplus(torch.tensor(-0.3)).item(), 0.0])
    found.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad[1].tolist() == [0, 0]
    assert outputs.grad[0, 1] == 0


def test_an_amount_that_never_varies_has_a_loss() -> None:
    constant = Task(name="x", strength="x", mean=2.0, deviation=0.0)
    assert task_losses(torch.zeros(1, 1), torch.full((1, 1), 2.0), [constant]).tolist() == [0.0]
