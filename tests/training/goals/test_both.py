"""One body for retrieval and ranking, and retrieval that reads actions and context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.serving.recommender import Recommender
from longview.training import load_model, train
from longview.training.config import RunConfig, resolve_config
from longview.training.goals import make_goal
from tests.ranking_log import SETTINGS, write_ranking
from tests.training.test_run import assert_same_state


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("both") / "shop", kind="leave-last-out")


def config(*overrides: str) -> RunConfig:
    return resolve_config("ranking-small", [*SETTINGS, "task=both", *overrides])


class TestBoth:
    def test_two_reports_and_one_model(self, shop: PreparedData, tmp_path: Path) -> None:
        result = train(config(), shop, tmp_path / "run", baselines=True)
        assert {"hr@10", "ndcg@10", "ne", "like.auc", "stars.mae"} <= result.metrics.keys()
        assert result.test.metrics["hr@10"] == result.metrics["hr@10"], "retrieval is the first outcome"
        assert [len(outcome.baselines.reports) for outcome in (result.outcome, *result.further)] == [4, 4]
        written = json.loads((tmp_path / "run" / "result.json").read_text())
        assert written["further"][0]["test"]["kind"] == "ranking"
        card = (tmp_path / "run" / "card.md").read_text()
        assert "HR@10" in card
        assert "## Ranking, beside the baselines" in card

    def test_it_recommends_and_ranks_after_loading(self, shop: PreparedData, tmp_path: Path) -> None:
        result = train(config("model.embedding.context=[taste]"), shop, tmp_path / "run")
        recommender = Recommender.load(tmp_path / "run")
        assert recommender.evaluate().metrics == result.test.metrics
        assert recommender.recommend(users=["user 1"], k=3).num_rows == 3
        with pytest.warns(UserWarning, match="reads times"):
            assert recommender.recommend(sequences=[["item 1", "item 3"]], k=3).num_rows == 3

    @pytest.mark.parametrize("metric", ["ndcg@10", "like.ne"])
    def test_either_side_selects(self, shop: PreparedData, tmp_path: Path, metric: str) -> None:
        result = train(config(f"loop.metric={metric}"), shop, tmp_path / "run")
        assert metric in result.state.best_metrics

    def test_two_epochs_are_one_and_a_resumed_one(self, shop: PreparedData, tmp_path: Path) -> None:
        sampled = ("loss.kind=sampled", "loss.num_negatives=8", "loss.negative_groups=2")
        straight = train(config(*sampled), shop, tmp_path / "straight")
        train(config(*sampled, "loop.max_minutes=1e-9"), shop, tmp_path / "halves")
        resumed = train(config(*sampled), shop, tmp_path / "halves", resume=True)
        assert_same_state(tmp_path / "straight", tmp_path / "halves")
        assert resumed.metrics == straight.metrics

    @pytest.mark.parametrize(("setting", "still"), [("ranking.weight=0", "head"), ("ranking.retrieval_weight=0", None)])
    def test_a_weight_of_zero_switches_a_side_off(self, shop: PreparedData, setting: str, still: str | None) -> None:
        goal = make_goal(config(setting), shop)
        model, loss = goal.build(), goal.objective(torch.device("cpu"))
        value = loss.loss(model, next(iter(goal.batches().epoch(0))))
        value.backward()
        head = [p.grad for name, p in model.named_parameters() if name.startswith("head.towers")]
        trained = any(gradient is not None and gradient.abs().sum() > 0 for gradient in head)
        assert trained == (still is None)

    def test_the_loss_is_the_weighted_sum_of_both(self, shop: PreparedData) -> None:
        def value(*settings: str) -> float:
            torch.manual_seed(0)
            goal = make_goal(config(*settings), shop)
            model = goal.build().eval()
            return goal.objective(torch.device("cpu")).loss(model, next(iter(goal.batches().epoch(0)))).item()

        one, other = value("ranking.weight=0"), value("ranking.retrieval_weight=0")
        assert value("ranking.weight=2", "ranking.retrieval_weight=3") == pytest.approx(3 * one + 2 * other, rel=1e-5)


class TestRetrievalWithActions:
    def config(self, *overrides: str) -> RunConfig:
        settings = [s for s in SETTINGS if not s.startswith("ranking")]
        inputs = ("model.embedding.actions=sum", "model.embedding.context=[taste, age]")
        return resolve_config("hstu-small", [*settings, "batches.windows=latest", *inputs, *overrides])

    def test_it_trains_evaluates_and_recommends(self, shop: PreparedData, tmp_path: Path) -> None:
        result = train(self.config(), shop, tmp_path / "run")
        loaded = load_model(tmp_path / "run")
        assert loaded.schema.actions == ("like", "buy")
        recommender = Recommender.load(tmp_path / "run")
        assert recommender.evaluate().metrics == result.test.metrics, "with actions, strengths and context again"
        queries = recommender.recommend(users=["user 1", "user 2"], k=3)
        assert queries.num_rows == 6

    def test_actions_of_known_users_are_served_as_they_are_trained_on(self, shop: PreparedData, tmp_path: Path) -> None:
        """A recommendation for a user is what evaluation ranks highest for his whole history."""
        from longview.data.batches import gather
        from longview.evaluation.ranking import inputs_of

        train(self.config("loop.epochs=1"), shop, tmp_path / "run")
        recommender = Recommender.load(tmp_path / "run")
        model = load_model(tmp_path / "run").model
        start, end = shop.offsets[5:6], shop.offsets[6:7]
        vector = model.user_vectors(gather(shop, start, end, inputs=inputs_of(model, shop)))
        best = (vector @ model.item_vectors().T).argmax().item()
        found = recommender.recommend(users=["user 5"], k=1, include_seen=True)
        assert found["item"][0].as_py() == f"item {best}" or shop.item_ids.ids[best].as_py() == found["item"][0].as_py()

    def test_data_without_actions_is_refused(self, tiny: PreparedData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no actions and no strengths"):
            train(self.config("model.embedding.context=[]"), tiny, tmp_path / "run")
