"""Interleaved timing: everybody gets as many turns, and no one is always first."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from longview.bench.attention import Setting, bench_attention
from longview.bench.timing import Timing, interleaved, turns
from longview.errors import InputError
from longview.ops.attention import MaskSpec
from tests.bench.written import read_written


def test_providers_take_turns_each_first_and_each_after_every_other() -> None:
    calls: list[str] = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=20, warm_up=0)  # type: ignore[misc]
    rounds = [calls[first : first + 3] for first in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {one[0] for one in rounds} == {"a", "b", "c"}
    assert {(one[k], one[k + 1]) for one in rounds for k in (0, 1)} == {(a, b) for a in "abc" for b in "abc" if a != b}
    assert {t.rounds for t in timings.values()} == {20}


def test_warm_up_rounds_are_called_but_not_counted() -> None:
    calls: list[int] = []
    timing = interleaved({"only": lambda: calls.append(1)}, rounds=4, warm_up=2)["only"]
    assert (len(calls), timing.rounds) == (6, 4)


def test_a_timing_is_a_median_with_its_spread() -> None:
    timing = Timing.of([0.1 * n for n in range(11)])
    assert (timing.p10, timing.median, timing.p90) == pytest.approx((0.1, 0.5, 0.9))
    assert timing.rate(100) == pytest.approx(200)
    assert timing.as_dict() == {"median_ms": 500.0, "p10_ms": 100.0, "p90_ms": 900.0}


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(InputError, match="rounds=0"):
        interleaved({}, rounds=0)


def test_bench_attention_counts_pairs_and_checks_what_it_times(tmp_path: Path) -> None:
    settings = [
        Setting("long", (90,), 2, 8, MaskSpec.ultra_prefix(16, 8)),
        Setting("short", (3, 20), 1, 8, MaskSpec.causal()),
    ]
    result = bench_attention(tmp_path / "bench.json", rounds=1, settings=settings)
    assert read_written(tmp_path / "bench.json") == result
    long, short = result["settings"]
    assert long["visible_pairs"] == int(MaskSpec.ultra_prefix(16, 8).dense(0, 90, 0).sum())
    assert short["visible_pairs"] == 3 * 4 // 2 + 20 * 21 // 2
    assert set(long["providers"]) == {"ours", "ours, causal", "reference, dense", "SDPA, causal softmax"}
    assert "padded, dense" in short["providers"]
    assert max(long["relative_error"], short["relative_error"]) < 1e-5
    assert result["environment"]["threads"] >= 1


def test_a_turn_may_be_several_calls_of_which_the_first_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = 0

    def call(name: str, seconds: int) -> None:
        nonlocal clock
        clock += seconds if calls and calls[-1] == name else 100  # slow after somebody else
        calls.append(name)

    monkeypatch.setattr("longview.bench.timing.time.perf_counter", lambda: clock)
    providers = {"a": partial(call, "a", 3), "b": partial(call, "b", 5)}
    spent = turns(providers, rounds=3, warm_up=1, lead=1, calls=4)
    assert calls.count("a") == calls.count("b") == (3 + 1) * (1 + 4)
    assert spent == {"a": [3, 3, 3], "b": [5, 5, 5]}
