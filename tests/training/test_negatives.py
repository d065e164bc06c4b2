"""Negatives are drawn as often as they should be, and the draw resumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longview.data.dataset import PreparedData
from longview.models.baselines.log import training_counts
from longview.training.config import LossConfig
from longview.training.negatives import NegativeSampler


def sampler(data: PreparedData, **settings: Any) -> NegativeSampler:
    config = LossConfig(**{"kind": "sampled", "num_negatives": 50, "negative_groups": 4, **settings})
    return NegativeSampler(config, data, device=torch.device("cpu"), seed=3)


TARGETS = torch.tensor([2, 2, 2, 7])


@pytest.mark.parametrize("sampling", ["uniform", "popularity", "in-batch"])
def test_each_group_gets_its_own(tiny: PreparedData, sampling: str) -> None:
    drawn = sampler(tiny, sampling=sampling).draw(TARGETS).items
    assert drawn.shape == (4, 50)
    assert not torch.equal(drawn[0], drawn[1])
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < tiny.num_items


def test_uniform_draws_every_item_alike(tiny: PreparedData) -> None:
    drawn = sampler(tiny, num_negatives=30_000).draw(TARGETS)
    share = torch.bincount(drawn.items.flatten(), minlength=tiny.num_items) / drawn.items.numel()
    assert (share * tiny.num_items - 1).abs().max() < 0.1
    assert drawn.log_q is None, "a uniform sample needs no correction"


def test_popularity_draws_by_training_events_only(tiny: PreparedData) -> None:
    drawn = sampler(tiny, sampling="popularity", num_negatives=30_000).draw(TARGETS)
    share = np.bincount(drawn.items.flatten().numpy(), minlength=tiny.num_items) / drawn.items.numel()
    counts = training_counts(tiny)
    np.testing.assert_allclose(share, counts / counts.sum(), atol=0.004)


def test_in_batch_draws_the_targets_of_the_batch(tiny: PreparedData) -> None:
    drawn = sampler(tiny, sampling="in-batch", num_negatives=2000).draw(TARGETS).items
    assert set(drawn.flatten().tolist()) == {2, 7}
    assert (drawn == 2).float().mean() == pytest.approx(0.75, abs=0.03)


def test_log_q_is_the_log_of_how_often_it_draws(tiny: PreparedData) -> None:
    drawn = sampler(tiny, sampling="popularity").draw(TARGETS)
    counts = training_counts(tiny)
    assert drawn.log_q is not None
    assert drawn.target_log_q is not None
    np.testing.assert_allclose(drawn.log_q.exp(), (counts / counts.sum())[drawn.items], rtol=0.02)
    np.testing.assert_allclose(drawn.target_log_q.exp(), (counts / counts.sum())[TARGETS], rtol=0.02)
    assert sampler(tiny, sampling="popularity", logq=False).draw(TARGETS).log_q is None


def test_the_stream_goes_on_from_a_saved_state(tiny: PreparedData) -> None:
    first = sampler(tiny)
    first.draw(TARGETS)
    state = first.state()
    expected = first.draw(TARGETS).items
    second = sampler(tiny)
    second.load_state(state)
    assert torch.equal(second.draw(TARGETS).items, expected)
