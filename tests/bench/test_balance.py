"""The benchmark of balanced lengths: what it reports follows from the lengths it drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longview.bench import balance
from longview.bench.balance import bench_balance
from longview.data.share import Rows
from longview.data.stochastic_length import StepTime
from longview.errors import InputError


def draw(number: int, generator: np.random.Generator) -> Rows:
    return generator.integers(10, 1001, number)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_balance_narrows_the_spread_and_speeds_up_the_slowest(gamma: float) -> None:
    found = balance._simulate("any", 1000, draw, StepTime(0.0, 1e-6, gamma), 32, 8, 40)
    full, plain, balanced = (found[policy] for policy in balance.POLICIES)
    assert full["tokens_a_history"] > plain["tokens_a_history"]
    assert balanced["mean_load"] == pytest.approx(plain["mean_load"], rel=0.05)
    assert balanced["max_over_mean"] < plain["max_over_mean"] / 3
    assert found["speed_up_of_balance"] > 1.05


def test_a_step_takes_as_long_as_its_slowest_rank() -> None:
    steps = [[np.array([1, 2]), np.array([5])], [np.array([4]), np.array([4])]]
    found = balance._figures(steps, StepTime(1.0, 0.5, 1.0))
    assert found["tokens_per_second"] == pytest.approx(16 / (1 + 0.5 * 5 + 1 + 0.5 * 4), abs=1e-3)
    assert found["max_over_mean"] == pytest.approx((5 / 4 - 1 + 0) / 2)


def test_the_result_is_json_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(balance, "_measure", dies)  # spawning is tests/training/test_distributed.py's
    monkeypatch.setattr(balance, "SHAPES", ((1, 8), (1, 16), (2, 32)))
    monkeypatch.setattr(balance, "SIZES", (4,))
    with pytest.raises(KeyboardInterrupt):
        bench_balance(tmp_path / "result.json", ranks=2, steps=2, rounds=1)
    found = json.loads((tmp_path / "result.json").read_text())
    assert [fit["attention"] for fit in found["step_time"]] == ["semi-local", "full"]
    assert [(one["gamma"], one["batch_size_a_rank"]) for one in found["simulated"]] == [(1.0, 4), (2.0, 4)]


def test_one_rank_has_nothing_to_balance() -> None:
    with pytest.raises(InputError, match="ranks=1"):
        bench_balance(ranks=1)
