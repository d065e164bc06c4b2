"""Retrieval: the configuration of stochastic length reaches the batches, with the load of the model's attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.training.config import RunConfig
from longview.training.goals.retrieval import RetrievalGoal

Configure = Callable[..., RunConfig]
LOAD = "batches.stochastic_length.balance=load"


@pytest.mark.parametrize(
    ("settings", "gamma"),
    [
        (["model.attention.local_window=4"], 1.0),
        (["model.attention.local_window=0"], 2.0),
        (["model.attention.local_window=4", "batches.stochastic_length.gamma=1.4"], 1.4),
    ],
)
def test_load_follows_the_attention_unless_it_is_given(
    tiny: PreparedData, tiny_config: Configure, settings: list[str], gamma: float
) -> None:
    balancer = RetrievalGoal(tiny_config(LOAD, *settings), tiny).batches()._balancer
    assert balancer is not None
    assert balancer.gamma == gamma
    assert balancer.rule.max_length == 8
    assert balancer.rule.alpha == 1.7


def test_without_it_every_history_is_whole(tiny: PreparedData, tiny_config: Configure) -> None:
    assert RetrievalGoal(tiny_config(), tiny).batches()._rule is None


@pytest.mark.parametrize("alpha", [1, 2.5])
def test_alpha_out_of_range_names_the_key(tiny_config: Configure, alpha: float) -> None:
    with pytest.raises(InputError, match=rf"batches\.stochastic_length\.alpha: .*got {alpha}"):
        tiny_config(f"batches.stochastic_length.alpha={alpha}")
