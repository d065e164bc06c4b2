"""Baselines of ranking against what their words say, and against a general optimiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from longview.data.dataset import PreparedData
from longview.data.labels import Task, TaskConfig, labels_of, resolve_tasks
from longview.data.requests import Candidates, Requests, candidates_of
from longview.models.baselines.rates import PRIOR, Biases, GlobalRate, ItemRate, UserRate, history_rows
from tests.ranking_log import write_ranking

CONFIGS = (TaskConfig(name="like", action="like"), TaskConfig(name="stars", strength="rating"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("rates") / "shop")


@pytest.fixture(scope="module")
def tasks(shop: PreparedData) -> tuple[Task, ...]:
    return resolve_tasks(CONFIGS, shop)


@pytest.fixture(scope="module")
def train(shop: PreparedData) -> tuple[Requests, Candidates]:
    requests = Requests.of(shop, "train", 3)
    return requests, candidates_of(shop, requests, CONFIGS)


@pytest.fixture(scope="module")
def test(shop: PreparedData) -> tuple[Requests, Candidates]:
    requests = Requests.of(shop, "test", 3)
    return requests, candidates_of(shop, requests, CONFIGS)


Part = tuple[Requests, Candidates]


def minimise(cost: Callable[[], torch.Tensor], *parameters: torch.Tensor) -> None:
    """Find the minimum of a convex function with an optimiser that knows nothing of it."""
    optimiser = torch.optim.LBFGS(parameters, max_iter=300, tolerance_grad=1e-9)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        value = cost()
        value.backward()
        return value

    optimiser.step(step)


def penalised(score: torch.Tensor, labels: torch.Tensor, *biases: torch.Tensor) -> torch.Tensor:
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(score, labels, reduction="sum")
    return entropy + sum((0.5 * bias.square().sum() for bias in biases), torch.zeros(()))


def test_the_global_rate_is_that_of_training(
    shop: PreparedData, tasks: tuple[Task, ...], train: Part, test: Part
) -> None:
    found = GlobalRate().fit(shop, tasks, *train).predict(shop, *test)
    assert np.allclose(found, [task.mean for task in tasks], atol=1e-6)


def test_an_item_rate_is_shrunk_to_the_global_one(
    shop: PreparedData, tasks: tuple[Task, ...], train: Part, test: Part
) -> None:
    found = ItemRate().fit(shop, tasks, *train).predict(shop, *test)
    for row in (0, 5):
        for number in range(2):
            own = train[1].labels[train[1].items == test[1].items[row], number]
            own = own[~np.isnan(own)].astype(float)
            mean = np.nanmean(train[1].labels[:, number].astype(float))
            assert found[row, number] == pytest.approx((own.sum() + PRIOR * mean) / (len(own) + PRIOR))


def test_a_user_rate_is_that_of_the_history_of_the_request(
    shop: PreparedData, tasks: tuple[Task, ...], train: Part, test: Part
) -> None:
    requests, candidates = test
    found = UserRate().fit(shop, tasks, *train).predict(shop, requests, candidates)
    for row in (0, len(candidates) - 1):
        number = candidates.request[row]
        history = np.arange(requests.start[number], requests.history_end[number])
        labels = labels_of(tasks, shop, history)[:, 0].astype(float)
        mean = train[1].labels[:, 0].astype(float).mean()
        assert found[row, 0] == pytest.approx((labels.sum() + PRIOR * mean) / (len(labels) + PRIOR))


def test_the_bias_of_a_user_is_the_penalised_optimum(
    shop: PreparedData, tasks: tuple[Task, ...], train: Part, test: Part
) -> None:
    baseline = Biases().fit(shop, tasks, *train)
    requests, candidates = test
    found = baseline.predict(shop, requests, candidates)
    rows, owner = history_rows(requests)
    for number in (0, len(requests) - 1):
        own = rows[owner == number]
        labels = torch.from_numpy(labels_of(tasks, shop, own)[:, 0].astype(float))
        start = float(np.log(baseline.mean[0] / (1 - baseline.mean[0])))
        held = torch.from_numpy(start + baseline.items[shop.items[own], 0])
        bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        minimise(partial(lambda h, b, y: penalised(h + b, y, b), held, bias, labels), bias)
        row = int(np.flatnonzero(candidates.request == number)[0])
        wanted = torch.sigmoid(torch.tensor(start + baseline.items[candidates.items[row], 0]) + bias.detach())
        assert found[row, 0] == pytest.approx(wanted.item(), abs=1e-4)


def test_item_biases_are_near_the_joint_optimum(shop: PreparedData, tasks: tuple[Task, ...], train: Part) -> None:
    baseline = Biases().fit(shop, tasks, *train)
    requests, candidates = train
    users = torch.from_numpy(requests.users[candidates.request])
    items, labels = torch.from_numpy(candidates.items), torch.from_numpy(candidates.labels[:, 0].astype(float))
    start = float(np.log(baseline.mean[0] / (1 - baseline.mean[0])))
    item = torch.zeros(shop.num_items, dtype=torch.float64, requires_grad=True)
    user = torch.zeros(shop.num_users, dtype=torch.float64, requires_grad=True)
    minimise(lambda: penalised(start + item[items] + user[users], labels, item, user), item, user)
    assert np.allclose(baseline.items[:, 0], item.detach().numpy(), atol=0.05)


@pytest.mark.parametrize("make", [GlobalRate, ItemRate, UserRate, Biases])
def test_probabilities_are_probabilities_for_users_without_a_history(
    shop: PreparedData, tasks: tuple[Task, ...], train: Part, make: type[GlobalRate]
) -> None:
    found = make().fit(shop, tasks, *train).predict(shop, *train)
    assert found.shape == train[1].labels.shape
    assert np.isfinite(found).all()
    assert ((found[:, 0] > 0) & (found[:, 0] < 1)).all()
