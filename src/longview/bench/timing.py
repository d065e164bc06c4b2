"""Timing several providers of one result fairly: interleaved rounds in one run, medians and spread.

A machine is never quite the same twice. Taking turns lets whatever else it does slow all providers alike, so
ratios of medians of one run hold where ratios between runs do not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from longview.errors import InputError


@dataclass(frozen=True)
class Timing:
    """Seconds of one provider over the rounds of a run."""

    median: float
    p10: float
    p90: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        p10, median, p90 = (float(x) for x in np.percentile(seconds, [10, 50, 90]))
        return cls(median, p10, p90, len(seconds))

    def rate(self, work: float) -> float:
        """Return `work` per second at the median."""
        return work / self.median

    def as_dict(self) -> dict[str, float]:
        """Return milliseconds, JSON-ready."""
        return {
            "median_ms": round(1e3 * self.median, 4),
            "p10_ms": round(1e3 * self.p10, 4),
            "p90_ms": round(1e3 * self.p90, 4),
        }


def interleaved(
    providers: Mapping[str, Callable[[], object]], *, rounds: int = 20, warm_up: int = 2
) -> dict[str, Timing]:
    """Call every provider once a round, in an order of its own, and return their timings.

    A provider does its work before it returns (on a GPU it synchronises). `warm_up` rounds are not counted.

    Example:
        >>> timings = interleaved({"sum": lambda: sum(range(1000)), "max": lambda: max(range(1000))}, rounds=3)
        >>> timings["sum"].rounds
        3

    Raises:
        InputError: fewer than one round.
    """
    return {name: Timing.of(spent) for name, spent in turns(providers, rounds=rounds, warm_up=warm_up).items()}


def turns(
    providers: Mapping[str, Callable[[], object]], *, rounds: int = 20, warm_up: int = 2, lead: int = 0, calls: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of a call of each provider in every round; see `interleaved`.

    A turn is `lead` calls that are not timed and `calls` that are.
    """
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for turn, names in shuffled_rounds(providers, rounds, warm_up):
        for name in names:
            for _ in range(lead):
                providers[name]()
            begin = time.perf_counter()
            for _ in range(calls):
                providers[name]()
            spent = (time.perf_counter() - begin) / calls
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


def shuffled_rounds(providers: Mapping[str, object], rounds: int, warm_up: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each round's number, below 0 to warm up, and the names in an order of its own, the same in every run.

    What came before slows a call, by what it left in caches; so everybody comes after everybody.

    Raises:
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"rounds={rounds}: at least 1")
    names, order = list(providers), random.Random(0)
    for turn in range(-warm_up, rounds):
        yield turn, order.sample(names, len(names))


def paired_ratio(seconds: list[float], base: list[float]) -> tuple[float, float, float]:
    """Return the median over rounds of `seconds` / `base`, and a 95 % interval of it.

    Both of a round met the same machine, so its ratio says more than the ratio of two medians. The interval is that of
    the order statistics, which supposes nothing of how ratios are distributed; of few rounds it is their whole range.

    Example:
        >>> paired_ratio([2.0, 3.0, 8.0], [1.0, 1.0, 4.0])
        (2.0, 2.0, 3.0)
    """
    ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
    n = len(ratios)
    half = 0.98 * n**0.5  # 1.96 standard deviations of how many of n lie below the median
    low, high = max(0, math.floor((n - 1) / 2 - half)), min(n - 1, math.ceil((n - 1) / 2 + half))
    return float(np.median(ratios)), ratios[low], ratios[high]
