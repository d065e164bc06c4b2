"""A run that ranks: it learns, resumes bit for bit, knows its way up and down, and loads as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.labels import resolve_tasks
from longview.errors import InputError
from longview.training import InterruptedRunError, load_model, train
from longview.training.checkpoint import latest_checkpoint
from longview.training.config import RunConfig, resolve_config
from longview.training.goals import make_goal
from longview.training.loop import DivergenceError
from longview.training.progress import Status, TrainingProgress
from longview.training.trainer import Trainer
from tests.ranking_log import SETTINGS, write_ranking
from tests.training.test_run import SignalAt, assert_same_state


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("ranking") / "shop", users=80)


def config(*overrides: str) -> RunConfig:
    return resolve_config("ranking-small", [*SETTINGS, *overrides])


def test_it_learns_what_only_the_history_tells(shop: PreparedData, tmp_path: Path) -> None:
    result = train(config("loop.epochs=9"), shop, tmp_path / "run", baselines=True)
    item = next(report for report in result.baselines if report.name == "item rate")
    assert result.test.metrics["like.auc"] > 0.85 > item.metrics["like.auc"]
    assert result.test.metrics["like.ne"] < 0.8
    assert result.test.metrics["stars.mae"] < 0.6 * item.metrics["stars.mae"]
    assert [report.name for report in result.baselines] == ["global rate", "item rate", "user rate", "item + user bias"]


def test_sampled_candidates_count_as_those_nothing_happened_to(tmp_path: Path) -> None:
    def even_ones(events: dict[str, np.ndarray]) -> None:
        events["action"][:] = events["item"] % 2 == 0

    data = write_ranking(tmp_path / "shop", users=80, change=even_ones)
    result = train(config("loop.epochs=4", "ranking.sampled=2"), data, tmp_path / "run")
    real = resolve_tasks(result.config.ranking.tasks, data)[0].mean
    assert result.test.num_candidates > data.num_events - data.split.train_end.sum()
    assert 0.4 < real < 0.6, "of the events themselves"
    mean = (
        sum(predicted * count for predicted, _, count in result.test.reliability["like"]) / result.test.num_candidates
    )
    assert mean < 0.45, "of all candidates fewer are liked, and the model knows"
    assert result.test.metrics["like.auc"] > 0.7


@pytest.mark.parametrize(
    ("metric", "better"), [("ne", min), ("like.auc", max), ("stars.mae", min)], ids=["ne", "auc", "mae"]
)
def test_the_best_epoch_is_the_best_in_the_direction_of_the_metric(
    shop: PreparedData, tmp_path: Path, metric: str, better: object
) -> None:
    assert callable(better)
    result = train(config(f"loop.metric={metric}", "loop.epochs=4", "optimiser.rate=0.05"), shop, tmp_path / "run")
    values = [epoch[metric] for epoch in result.state.epochs]
    assert result.best_epoch == 1 + values.index(better(values))
    assert result.validation.metrics[metric] == pytest.approx(better(values))


def test_a_signal_in_mid_epoch_resumes_bit_for_bit(shop: PreparedData, tmp_path: Path) -> None:
    chosen = config("ranking.sampled=1", "optimiser.average_decay=0.9", "model.dropout=0.1")
    straight = train(chosen, shop, tmp_path / "straight")
    with pytest.raises(InterruptedRunError):
        train(chosen, shop, tmp_path / "broken", progress=SignalAt(5))
    resumed = train(chosen, shop, tmp_path / "broken", resume=True)
    assert_same_state(tmp_path / "straight", tmp_path / "broken")
    assert resumed.test.metrics == straight.test.metrics


def test_a_loaded_model_predicts_as_it_did(shop: PreparedData, tmp_path: Path) -> None:
    context = "model.embedding.context=[taste, age]"
    result = train(config(context, "model.embedding.actions=mlp"), shop, tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    goal = make_goal(loaded.config, shop, loaded.schema, loaded.tasks)
    again = goal.reports(loaded.model, "test", torch.device("cpu"))[0]
    assert again.metrics == result.test.metrics
    assert [task.name for task in loaded.tasks] == ["like", "stars"]


def test_result_and_card_say_what_was_ranked(shop: PreparedData, tmp_path: Path) -> None:
    train(config(), shop, tmp_path / "run", baselines=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    card = (tmp_path / "run" / "card.md").read_text()
    assert result["test"]["kind"] == "ranking"
    assert result["selected_by"] == "validation ne"
    for words in (
        "like NE",
        "stars MAE",
        "## Calibration",
        "item + user bias",
        "Users with one class only",
        "## Settings",
    ):
        assert words in card


class Losses(TrainingProgress):
    def step(self, status: Status) -> None:
        self.last = status


def test_a_loss_that_is_no_number_names_the_batch_and_keeps_the_last_checkpoint(
    shop: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, batch: JaggedBatch, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number == 7:
            with torch.no_grad():
                self.model.embedding.items.weight[:] = np.nan
        return step(self, batch, number)

    monkeypatch.setattr(Trainer, "step", poisoned)
    out = tmp_path / "run"
    with pytest.raises(
        DivergenceError,
        match=r"the loss became nan at step 8 \(epoch \d+, batch \d+ of \d+\); the last good checkpoint",
    ):
        train(config("loop.epochs=20", "loop.checkpoint_every_steps=3"), shop, out)
    kept = latest_checkpoint(out / "checkpoint")
    assert kept is not None
    assert json.loads(kept.read_text())["step"] == 6


class TestBadInput:
    def test_a_metric_of_something_else_names_those_there_are(self, shop: PreparedData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"'ndcg@10' is not measured on validation.*like\.ne.*stars\.mae"):
            train(config("loop.metric=ndcg@10"), shop, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_an_action_the_data_does_not_have(self, shop: PreparedData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the action 'share', which shop does not have; its actions: like, buy"):
            train(config("ranking.tasks=[{name: share, action: share}]"), shop, tmp_path / "run")

    @pytest.mark.parametrize(("bits", "said"), [(0, "never the case"), (3, "always the case .*ranking.sampled")])
    def test_one_class_only(self, tmp_path: Path, bits: int, said: str) -> None:
        def same(events: dict[str, np.ndarray]) -> None:
            events["action"][:] = bits

        with pytest.raises(InputError, match=f"task 'like' is {said}"):
            train(config(), write_ranking(tmp_path / "shop", change=same), tmp_path / "run")

    def test_what_always_happens_is_learned_beside_sampled_candidates(self, tmp_path: Path) -> None:
        def same(events: dict[str, np.ndarray]) -> None:
            events["action"][:] = 1

        data = write_ranking(tmp_path / "shop", change=same)
        result = train(config("ranking.sampled=2", "loop.epochs=1"), data, tmp_path / "run")
        assert result.test.metrics["like.ne"] > 0, "defined, as both classes are there"

    def test_windows_are_of_retrieval(self, shop: PreparedData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"batches\.windows all .* task retrieval"):
            train(config("batches.windows=all"), shop, tmp_path / "run")
        with pytest.raises(InputError, match=r"batches\.stochastic_length is for task retrieval"):
            train(config("batches.stochastic_length.alpha=1.7"), shop, tmp_path / "run")

    def test_resuming_another_task(self, shop: PreparedData, tmp_path: Path) -> None:
        train(config("loop.epochs=1"), shop, tmp_path / "run")
        with pytest.raises(InputError, match="but task differ"):
            train(config("task=both"), shop, tmp_path / "run", resume=True)

    def test_recommending_with_a_model_that_only_ranks(self, shop: PreparedData, tmp_path: Path) -> None:
        from longview.serving.recommender import Recommender

        train(config("loop.epochs=1"), shop, tmp_path / "run")
        with pytest.raises(InputError, match="trained to rank candidates"):
            Recommender.load(tmp_path / "run").recommend(users=["user 1"], k=3)
