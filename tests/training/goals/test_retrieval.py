"""Retrieval: what of the configuration reaches the batches, and which next events are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.data.padding import capacity_for, padded
from longview.errors import InputError
from longview.training.config import RunConfig
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.objective import Objective
from longview.training.run import train

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


BUY = "loss.actions=[buy]"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Fifty users who view anything and buy every third event."""
    generator = np.random.default_rng(0)
    return write_prepared(
        tmp_path_factory.mktemp("data") / "shop",
        name="shop",
        events={
            "item": generator.integers(0, 20, 450).astype(np.int32),
            "timestamp": np.tile(np.arange(9), 50) * 60,
            "action": np.tile([1, 1, 3], 150),
        },
        users=pa.table({"id": [f"u{n}" for n in range(50)], "length": [9] * 50}),
        items=pa.table({"id": [f"i{n}" for n in range(20)]}),
        split=SplitSpec(),
        actions=["view", "buy"],
    )


@pytest.mark.parametrize("loss", [["loss.kind=full"], ["loss.kind=sampled", "loss.sampling=uniform"]], ids=str)
def test_the_loss_is_the_mean_over_next_events_with_a_wanted_action(
    shop: PreparedData, tiny_config: Configure, loss: list[str]
) -> None:
    config = tiny_config("model.dropout=0", "model.embedding.dropout=0", *loss, BUY)
    goal = RetrievalGoal(config, shop)
    batch = next(iter(goal.batches().epoch(0)))
    assert batch.counted is not None
    assert 0.2 < batch.counted.float().mean() < 0.5
    torch.manual_seed(0)
    model = goal.build()
    value = Objective(config.loss, shop, device=CPU, seed=1).loss(model, batch)
    # What follows other events is of no account, and neither is padding.
    assert batch.targets is not None
    other = replace(batch, targets=torch.where(batch.counted, batch.targets, 0))
    filled = padded(batch, capacity_for(batch, 8), 8)
    for same in (other, filled) if loss == ["loss.kind=full"] else (other,):
        found = Objective(config.loss, shop, device=CPU, seed=1).loss(model, same)
        torch.testing.assert_close(found, value)
    everything = Objective(config.loss, shop, device=CPU, seed=1).loss(model, replace(batch, counted=None))
    assert not torch.isclose(everything, value)


def test_a_run_trains_on_them_and_is_evaluated_on_all(
    shop: PreparedData, tiny_config: Configure, tmp_path: Path
) -> None:
    result = train(tiny_config(BUY), shop, tmp_path / "run")
    assert result.test.num_users == shop.num_users


def test_actions_the_data_does_not_have_are_refused(
    shop: PreparedData, tiny: PreparedData, tiny_config: Configure
) -> None:
    with pytest.raises(InputError, match=r"loss\.actions: no action 'bought'.*the data has view, buy"):
        RetrievalGoal(tiny_config("loss.actions=[bought]"), shop).check()
    with pytest.raises(InputError, match=r"loss\.actions: no action 'buy'; the data has no actions"):
        RetrievalGoal(tiny_config(BUY), tiny).check()


def test_one_action_needs_no_brackets(tiny_config: Configure) -> None:
    assert tiny_config("loss.actions=buy").loss.actions == ("buy",)


def test_settings_that_do_not_go_with_it_are_refused(tiny_config: Configure) -> None:
    with pytest.raises(InputError, match=r"loss\.actions .* set loss\.sampling popularity or uniform"):
        tiny_config(BUY, "loss.kind=sampled", "loss.sampling=in-batch")
    with pytest.raises(InputError, match=r"loss\.actions .* set task retrieval"):
        tiny_config(BUY, "task=both")
