"""What smaller tables cost, over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.drift import _interval, drift_of_seeds
from longview.evaluation.evaluate import evaluate
from longview.evaluation.quantised import QuantisedItems
from longview.models.retriever import RetrieverConfig


def test_each_model_is_compared_with_itself(random_data: PreparedData) -> None:
    models = [RetrieverConfig(width=64, layers=1, max_length=8).build(random_data.num_items).eval() for _ in range(2)]
    eight, four = drift_of_seeds(models, random_data, ("int8", "int4"))
    assert (eight["tables"], four["tables"]) == ("int8", "int4")
    assert four["times_smaller"] == 128 / 36
    assert four["bfloat16_bytes"] == 128 * random_data.num_items
    for model, change in zip(models, four["metrics"]["hr@10"]["seeds"], strict=True):
        full, small = (
            evaluate(one, random_data, "test", ks=(10,), resamples=0).metrics["hr@10"]
            for one in (model, QuantisedItems.of(model, "int4").model)
        )
        assert change == pytest.approx(small / full - 1)


def test_the_interval_is_over_users_with_both_tables() -> None:
    before, generator = np.ones(400), np.random.default_rng(0)
    assert _interval(before, before) == [0, 0]
    low, high = _interval(before, 1 + 0.1 * generator.standard_normal(400)) or [0, 0]
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert _interval(np.zeros(3), before[:3]) is None


def test_bad_input(random_data: PreparedData) -> None:
    with pytest.raises(InputError, match="choose int8 or int4"):
        drift_of_seeds([], random_data, ("int3",))
    with pytest.raises(InputError, match="there is no model"):
        drift_of_seeds([], random_data, ("int4",))
