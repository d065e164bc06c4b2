"""Stochastic length: most long histories train cut to their newest events, some whole; balanced over ranks or not.

With N the longest history and a = `alpha`, a sequence of n > T = floor(N^(a/2)) events stays whole with probability
N^a / n² and else keeps its T newest events. HSTU (arXiv 2402.17152) introduced it; that T newest events
are kept, and not a sample, and the balancing are of ULTRA-HSTU (arXiv 2602.16986).

Independent draws leave some ranks more work than others, and all wait for the slowest. Load-balanced stochastic length
(LBSL) lets each rank keep sequences whole until its load, the sum of n^gamma, is what plain draws give on average. In
which order, the paper leaves open; ours: each long sequence draws a time from the exponential distribution whose chance
of falling before 1 is the sequence's probability, and the earliest come first. Those before 1 would be exactly a plain
draw, so balancing only moves that moment until the load fits, and sequences keep their odds against one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from longview.config import Config
from longview.data.share import Rows, Share
from longview.errors import InputError

Values = npt.NDArray[np.float64]


class StochasticLengthConfig(Config):
    """Which long histories train whole. N, the longest history, is `model.max_length`."""

    alpha: float = Field(default=1.7, gt=1, le=2, description="at 2 nothing is cut; less cuts more")
    balance: Literal["none", "load"] = Field(
        default="none", description="load: each process keeps as many whole as bring it to the same load"
    )
    gamma: float | None = Field(
        default=None, gt=0, le=4, description="load of n events is n^gamma; null: 1 for semi-local attention, else 2"
    )
    interval: int = Field(default=100, ge=1, description="steps between estimates of the load to aim at")

    def build(self, max_length: int, share: Share) -> tuple[StochasticLength, LoadBalancer | None]:
        """Return the rule for histories of at most `max_length` events, and what balances it over the ranks.

        Raises:
            InputError: load is balanced, but gamma is not known.
        """
        rule = StochasticLength(max_length, self.alpha)
        if self.balance == "none":
            return rule, None
        if self.gamma is None:
            raise InputError("stochastic_length.gamma: without a model to go by, say what a load is, 1 or 2")
        return rule, LoadBalancer(rule, gamma=self.gamma, interval=self.interval, share=share)


@dataclass(frozen=True)
class StochasticLength:
    """The rule for histories of at most `max_length` events.

    Example:
        >>> StochasticLength(max_length=3072, alpha=1.7).threshold
        921

    Raises:
        InputError: no length, or alpha outside (1, 2].
    """

    max_length: int
    alpha: float = 1.7

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise InputError(f"stochastic length needs a longest history of at least 1 event, not {self.max_length}")
        if not 1 < self.alpha <= 2:
            raise InputError(f"stochastic_length.alpha must be in (1, 2], got {self.alpha}")

    @property
    def threshold(self) -> int:
        """T, the length up to which a sequence always stays whole."""
        return math.floor(math.pow(self.max_length, self.alpha / 2))

    def probability(self, lengths: Rows) -> Values:
        """Return the probability (n,) with which sequences of `lengths` (n,) stay whole."""
        self._check(lengths)
        whole = np.minimum(1.0, self.max_length**self.alpha / np.square(lengths.astype(np.float64)))
        return np.where(lengths <= self.threshold, 1.0, whole)

    def cut(self, lengths: Rows) -> Rows:
        """Return the lengths (n,) of sequences that do not stay whole."""
        return np.minimum(lengths, self.threshold)

    def draw(self, lengths: Rows, generator: np.random.Generator) -> Rows:
        """Return how many of the newest events each of the sequences of `lengths` (n,) keeps."""
        whole = generator.random(len(lengths)) < self.probability(lengths)
        return np.where(whole, lengths, self.cut(lengths))

    def expected(self, lengths: Rows, gamma: float = 1.0) -> Values:
        """Return the mean of n^gamma (n,) over draws, n the kept length of sequences of `lengths` (n,)."""
        least = self.cut(lengths).astype(np.float64) ** gamma
        return least + self.probability(lengths) * (lengths.astype(np.float64) ** gamma - least)

    def _check(self, lengths: Rows) -> None:
        if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= self.max_length):
            raise InputError(
                f"stochastic length takes sequences of 1 to {self.max_length} events, got {lengths.min()} to "
                f"{lengths.max()}: cut them to the longest history first, and leave out empty ones"
            )


class LoadBalancer:
    """Draws of a rule that give every rank of `share` about the same load at every step (LBSL).

    The first `interval` steps draw as the rule does. From then on the load aimed at is what the rule gives on average,
    for sequences like those of the `interval` steps before on all ranks: two sums over the ranks every `interval` steps
    are all that they tell one another.

    Args:
        rule: the probabilities.
        gamma: load of a sequence of n events is n^gamma.
        interval: steps between estimates.
        share: this rank, and how to sum over all.
    """

    def __init__(
        self, rule: StochasticLength, *, gamma: float, interval: int = 100, share: Share | None = None
    ) -> None:
        self.rule, self.gamma, self.interval, self.share = rule, gamma, interval, share or Share()
        self.load_per_size: float | None = None
        self._load, self._size, self._steps = 0.0, 0.0, 0

    def draw(self, lengths: Rows, size: float, generator: np.random.Generator) -> Rows:
        """Return how many of the newest events each sequence of this rank's `lengths` (n,) keeps in the next step.

        `size` is that of the whole batch over the number of ranks, in the unit that batches are made of, sequences or
        tokens. It must be the same on all ranks: a smaller last batch aims at a smaller load.
        """
        if self.load_per_size is None:
            kept = self.rule.draw(lengths, generator)
        else:
            kept = fill(self.rule, lengths, self.load_per_size * size, self.gamma, generator)
        self._record(lengths, size)
        return kept

    def _record(self, lengths: Rows, size: float) -> None:
        self._load += float(self.rule.expected(lengths, self.gamma).sum())
        self._size += size
        self._steps += 1
        if self._steps == self.interval:
            self.aim(self.share.total(self._load), self.share.total(self._size))

    @property
    def sums(self) -> tuple[float, float]:
        """Expected load and size of this rank's batches since the last estimate."""
        return self._load, self._size

    def aim(self, load: float, size: float) -> None:
        """Aim at `load` for batches of `size`, both summed over the ranks, and begin new sums."""
        self.load_per_size = load / size
        self._load, self._size, self._steps = 0.0, 0.0, 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep: (4,) float64."""
        aim = math.nan if self.load_per_size is None else self.load_per_size
        return {"load": torch.tensor([aim, self._load, self._size, self._steps], dtype=torch.float64)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        aim, self._load, self._size, steps = tensors["load"].tolist()
        self.load_per_size, self._steps = None if math.isnan(aim) else aim, int(steps)


def fill(rule: StochasticLength, lengths: Rows, target: float, gamma: float, generator: np.random.Generator) -> Rows:
    """Return how many events each sequence of `lengths` (n,) keeps so that their load comes near `target`.

    All are cut to begin with. In the random order that the module describes they stay whole until the next would take
    the load further from the target, so it passes the target by less than half of what one sequence adds. Going on to
    sequences that add less would come nearer still, but favour the shorter of the long ones.
    """
    kept, odds = rule.cut(lengths), rule.probability(lengths)
    gain = lengths.astype(np.float64) ** gamma - kept.astype(np.float64) ** gamma
    long = np.flatnonzero(lengths > kept)
    missing = target - float((kept.astype(np.float64) ** gamma).sum())
    with np.errstate(divide="ignore"):  # a probability of 1 comes at time 0
        time = generator.exponential(size=len(long)) / -np.log1p(-odds[long])
    for at in long[np.argsort(time, kind="stable")].tolist():
        if gain[at] >= 2 * missing:
            break
        kept[at] = lengths[at]
        missing -= gain[at]
    return kept


@dataclass(frozen=True)
class StepTime:
    """A model of the seconds of a step: `fixed` + `slope` · Σ n^`gamma` over its sequences of n events."""

    fixed: float
    slope: float
    gamma: float

    def seconds(self, lengths: Rows) -> float:
        """Return the time of a step on sequences of `lengths` (n,)."""
        return self.fixed + self.slope * load_of(lengths, self.gamma)


def load_of(lengths: Rows, gamma: float) -> float:
    """Return the sum of n^gamma over sequences of `lengths` (n,)."""
    return float((lengths.astype(np.float64) ** gamma).sum())


def fit_step_time(lengths: Sequence[Rows], seconds: Sequence[float], gamma: float | None = None) -> StepTime:
    """Return the model of least squared relative error of steps on `lengths` that took `seconds`.

    With `gamma` None the exponent is fitted too, in [0.5, 3]; two thousandths apart is as near as it looks. Neither
    `fixed` nor `slope` is negative.

    Example:
        >>> steps = [np.array([n]) for n in (100, 200, 400, 800)]
        >>> round(fit_step_time(steps, [0.01 + 1e-6 * n**2 for n in (100, 200, 400, 800)]).gamma, 2)
        2.0

    Raises:
        InputError: fewer steps than unknowns, a time that is not positive, or steps that are all alike.
    """
    needed = 2 if gamma is not None else 3
    taken = np.asarray(seconds, dtype=np.float64)
    if len(lengths) != len(taken) or len(taken) < needed:
        raise InputError(f"{len(lengths)} steps and {len(taken)} times: expected as many, and at least {needed}")
    if not (np.isfinite(taken).all() and (taken > 0).all()):
        raise InputError("times of steps must be positive")
    found = [
        _fit(lengths, taken, g) for g in ([gamma] if gamma is not None else np.arange(0.5, 3.0005, 0.002).tolist())
    ]
    if found[0] is None:
        raise InputError("all steps have the same load, so what a load costs cannot be told: vary the lengths")
    return min((f for f in found if f is not None), key=lambda pair: pair[0])[1]


def _fit(lengths: Sequence[Rows], taken: Values, gamma: float) -> tuple[float, StepTime] | None:
    """Return the sum of squared relative errors and the model of one gamma."""
    loads = np.array([load_of(n, gamma) for n in lengths])
    if np.ptp(loads) <= 1e-9 * loads.max():
        return None
    scale = loads.max()
    columns = np.stack([1 / taken, loads / scale / taken], axis=1)
    both = np.linalg.lstsq(columns, np.ones(len(taken)), rcond=None)[0]
    alone = [columns[:, i].sum() / np.square(columns[:, i]).sum() for i in (0, 1)]
    fits = [both] if (both >= 0).all() else [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
    errors = [float(np.square(columns @ fit - 1).sum()) for fit in fits]
    fixed, slope = fits[int(np.argmin(errors))]
    return min(errors), StepTime(float(fixed), float(slope / scale), float(gamma))
