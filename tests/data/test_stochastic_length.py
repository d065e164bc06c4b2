"""Stochastic length: the formula as specified, and loads that end up alike without changing which histories count."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.data import JaggedBatch, PreparedData, TrainingBatches
from longview.data.dataset import write_prepared
from longview.data.meta import SplitSpec
from longview.data.share import Rows, Share
from longview.data.stochastic_length import (
    LoadBalancer,
    StepTime,
    StochasticLength,
    StochasticLengthConfig,
    fill,
    fit_step_time,
    load_of,
)
from longview.errors import InputError

ALPHAS = st.floats(1.01, 2.0)
LENGTHS = st.lists(st.integers(1, 500), max_size=40).map(lambda lengths: np.array(lengths, dtype=np.int64))


def lifelong(count: int, seed: int = 0, longest: int = 16_384) -> Rows:
    drawn = np.random.default_rng(seed).lognormal(np.log(4000), 1.0, count)
    return np.clip(drawn, 20, longest).astype(np.int64)


class TestRule:
    @pytest.mark.parametrize(("longest", "average"), [(3_072, 1_110), (16_384, 4_450)])
    def test_the_averages_of_the_paper_are_those_of_histories_as_long_as_allowed(
        self, longest: int, average: int
    ) -> None:
        """1,114 and 4,505 events where every history has N: as many as the paper has, within 1.3 %."""
        rule = StochasticLength(longest, 1.7)
        lengths = np.full(20_000, longest)
        assert rule.expected(lengths[:1])[0] == pytest.approx(average, rel=0.013)
        assert rule.draw(lengths, np.random.default_rng(0)).mean() == pytest.approx(average, rel=0.03)

    def test_threshold_and_probability_are_the_formulas(self) -> None:
        rule = StochasticLength(1000, 1.6)
        assert rule.threshold == 251  # floor(1000^0.8 = 251.19)
        lengths = np.array([1, 251, 252, 500, 1000])
        assert rule.probability(lengths) == pytest.approx([1, 1, 1000**1.6 / 252**2, 1000**1.6 / 500**2, 1000**-0.4])

    def test_sequences_stay_whole_as_often_as_they_should(self) -> None:
        rule, generator = StochasticLength(1000), np.random.default_rng(0)
        for length in (400, 600, 1000):
            kept = rule.draw(np.full(20_000, length), generator)
            assert set(kept.tolist()) == {rule.threshold, length}
            assert (kept == length).mean() == pytest.approx(rule.probability(np.array([length]))[0], abs=0.015)

    @given(LENGTHS, ALPHAS)
    def test_nothing_grows_and_nothing_falls_below_the_threshold(self, lengths: Rows, alpha: float) -> None:
        rule = StochasticLength(500, alpha)
        kept = rule.draw(lengths, np.random.default_rng(0))
        assert (kept <= lengths).all()
        assert ((kept == lengths) | ((kept == rule.threshold) & (lengths > rule.threshold))).all()
        probability = rule.probability(lengths)
        assert ((probability > 0) & (probability <= 1)).all()

    @given(LENGTHS)
    def test_at_alpha_two_nothing_is_cut(self, lengths: Rows) -> None:
        assert StochasticLength(500, 2).draw(lengths, np.random.default_rng(0)).tolist() == lengths.tolist()

    @pytest.mark.parametrize("alpha", [1.0, 2.01, -1.7, float("nan")])
    def test_alpha_out_of_range_is_refused(self, alpha: float) -> None:
        with pytest.raises(InputError, match=r"alpha must be in \(1, 2\]"):
            StochasticLength(100, alpha)

    @pytest.mark.parametrize("lengths", [[5, 0], [101]])
    def test_lengths_that_cannot_be_are_refused(self, lengths: list[int]) -> None:
        with pytest.raises(InputError, match="1 to 100 events"):
            StochasticLength(100).draw(np.array(lengths), np.random.default_rng(0))
        with pytest.raises(InputError, match="at least 1 event"):
            StochasticLength(0)


class TestBalance:
    @given(LENGTHS, ALPHAS, st.sampled_from([1.0, 1.5, 2.0]), st.floats(0, 2e6))
    def test_the_load_passes_the_target_by_less_than_one_sequence(
        self, lengths: Rows, alpha: float, gamma: float, target: float
    ) -> None:
        rule = StochasticLength(500, alpha)
        kept = fill(rule, lengths, target, gamma, np.random.default_rng(0))
        cut = rule.cut(lengths)
        assert ((kept == lengths) | (kept == cut)).all()
        whole = lengths[kept > cut]
        if len(whole):
            gains = whole.astype(float) ** gamma - rule.threshold**gamma
            assert load_of(kept, gamma) <= target + gains.max() / 2 + 1e-6
        elif len(lengths):
            assert load_of(kept, gamma) == load_of(cut, gamma)

    @pytest.mark.parametrize("gamma", [1.0, 2.0])
    def test_ranks_end_up_alike_where_plain_draws_do_not(self, gamma: float) -> None:
        rule, rng = StochasticLength(16_384), np.random.default_rng(0)
        target = 64 * rule.expected(lifelong(100_000, seed=1), gamma).mean()
        spreads: dict[str, list[float]] = {"plain": [], "balanced": []}
        for step in range(40):
            ranks = [lifelong(64, seed=8 * step + rank) for rank in range(8)]
            plain = [load_of(rule.draw(lengths, rng), gamma) for lengths in ranks]
            balanced = [load_of(fill(rule, lengths, target, gamma, rng), gamma) for lengths in ranks]
            for name, loads in (("plain", plain), ("balanced", balanced)):
                spreads[name].append(np.std(loads) / np.mean(loads))
        assert np.median(spreads["balanced"]) < np.median(spreads["plain"]) / 4

    def test_whole_sequences_keep_their_odds(self) -> None:
        """Balanced draws keep as many whole of each length as plain ones, so that models see the same histories."""
        rule, rng = StochasticLength(16_384), np.random.default_rng(0)
        lengths = lifelong(64 * 400)
        target = 64 * rule.expected(lengths, 2.0).mean()
        kept = np.concatenate([fill(rule, part, target, 2.0, rng) for part in lengths.reshape(400, 64)])
        assert load_of(kept, 2.0) == pytest.approx(400 * target, rel=0.01)
        for low, high in pairwise([rule.threshold + 1, 6_000, 9_000, 16_385]):
            here = (lengths >= low) & (lengths < high)
            expected = rule.probability(lengths[here]).mean()
            assert (kept[here] == lengths[here]).mean() == pytest.approx(expected, abs=0.05)

    def test_the_first_interval_draws_plainly_and_then_aims_at_the_mean_of_all_ranks(self) -> None:
        rule = StochasticLength(500)
        asked: list[float] = []

        def total(number: float) -> float:
            asked.append(number)
            return 3 * number  # two other ranks like this one

        balancer = LoadBalancer(rule, gamma=1, interval=4, share=Share(0, 3, total))
        lengths = np.arange(100, 500, 10)
        for step in range(4):
            plain = rule.draw(lengths, np.random.default_rng(step))
            assert balancer.draw(lengths, len(lengths), np.random.default_rng(step)).tolist() == plain.tolist()
        assert balancer.load_per_size == pytest.approx(rule.expected(lengths).mean())
        assert asked == [pytest.approx(4 * rule.expected(lengths).sum()), 4 * len(lengths)]
        found = [balancer.draw(lengths, len(lengths), np.random.default_rng(step)).sum() for step in range(9)]
        assert np.abs(found - rule.expected(lengths).sum()).max() <= (500 - rule.threshold) / 2
        assert len(asked) == 6

    def test_a_smaller_last_batch_aims_lower(self) -> None:
        balancer = LoadBalancer(StochasticLength(500), gamma=1, interval=1)
        lengths = np.full(64, 500)
        balancer.draw(lengths, 64, np.random.default_rng(0))
        whole = [(balancer.draw(lengths[:n], n, np.random.default_rng(1)) == 500).mean() for n in (64, 16)]
        assert whole[1] == pytest.approx(whole[0], abs=0.1) != 1

    def test_an_empty_share_is_a_step_too(self) -> None:
        balancer = LoadBalancer(StochasticLength(500), gamma=2, interval=1)
        for _ in range(2):
            assert len(balancer.draw(np.array([], dtype=np.int64), 0.5, np.random.default_rng(0))) == 0


class TestStepTime:
    @pytest.mark.parametrize("gamma", [1.0, 1.6, 2.0])
    def test_the_exponent_is_found_again(self, gamma: float) -> None:
        rng = np.random.default_rng(0)
        steps = [rng.integers(50, 2000, 8) for _ in range(60)]
        truth = StepTime(0.02, 3e-6, gamma)
        found = fit_step_time(steps, [truth.seconds(n) * rng.lognormal(0, 0.02) for n in steps])
        assert found.gamma == pytest.approx(gamma, abs=0.08)
        assert found.seconds(steps[0]) == pytest.approx(truth.seconds(steps[0]), rel=0.05)

    def test_neither_part_is_negative(self) -> None:
        steps = [np.array([n]) for n in (10, 20, 30)]
        assert fit_step_time(steps, [0.1, 0.25, 0.4], gamma=1).fixed == 0
        assert fit_step_time(steps, [0.4, 0.3, 0.2], gamma=1).slope == 0

    @pytest.mark.parametrize(
        ("lengths", "seconds", "message"),
        [
            ([[1], [2]], [1.0, 2.0], "at least 3"),
            ([[5]] * 4, [1.0] * 4, "same load"),
            ([[1], [2], [3]], [1, 0, 2], "p"),
        ],
    )
    def test_what_cannot_be_fitted_is_refused(
        self, lengths: list[list[int]], seconds: list[float], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            fit_step_time([np.array(n) for n in lengths], seconds)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Fifty users of 4 to 100 events; every item occurs once, so that an item tells its row."""
    lengths = np.random.default_rng(0).integers(4, 101, 50)
    total = int(lengths.sum())
    return write_prepared(
        tmp_path_factory.mktemp("data") / "set",
        name="long ones",
        events={"item": np.arange(total, dtype=np.int32), "timestamp": np.arange(total) // 3 * 10},
        users=pa.table({"id": [f"u{n}" for n in range(50)], "length": lengths}),
        items=pa.table({"id": [f"i{n}" for n in range(total)]}),
        split=SplitSpec(kind="leave-last-out"),
    )


Make = Callable[..., TrainingBatches]


@pytest.fixture
def make(data: PreparedData) -> Make:
    def batches(balance: str = "load", alpha: float = 1.5, **settings: object) -> TrainingBatches:
        lengths = StochasticLengthConfig(alpha=alpha, balance=balance, gamma=1, interval=3)  # type: ignore[arg-type]
        settings = {"max_length": 80, "batch_size": 8, "seed": 3, **settings}
        return TrainingBatches(data, stochastic_length=lengths, **settings)  # type: ignore[arg-type]

    return batches


def sequences(batch: JaggedBatch) -> list[tuple[int, ...]]:
    return [tuple(batch.items[a:b].tolist()) for a, b in pairwise(batch.offsets.tolist())]


class TestBatches:
    @pytest.mark.parametrize("balance", ["none", "load"])
    def test_a_cut_history_is_its_newest_events(self, data: PreparedData, make: Make, balance: str) -> None:
        whole = {s[-1]: s for batch in TrainingBatches(data, max_length=80).epoch(0) for s in sequences(batch)}
        threshold, cut, uncut = StochasticLength(80, 1.5).threshold, 0, 0
        for batch in make(balance).epoch(0):
            assert batch.targets is not None
            assert batch.targets.tolist() == (batch.items + 1).tolist()
            for sequence in sequences(batch):
                full = whole.pop(sequence[-1])
                assert sequence == full or sequence == full[-threshold:]
                cut, uncut = cut + (sequence != full), uncut + (len(sequence) > threshold)
        assert not whole
        assert cut
        assert uncut

    @pytest.mark.parametrize("windows", ["latest", "random", "all"])
    def test_at_alpha_two_batches_are_those_without(self, data: PreparedData, make: Make, windows: str) -> None:
        settings = {"max_length": 80, "batch_size": 8, "seed": 3, "windows": windows}
        plain = TrainingBatches(data, **settings)  # type: ignore[arg-type]
        for balance in ("none", "load"):
            found = [sequences(batch) for batch in make(balance, alpha=2, windows=windows).epoch(1)]
            assert found == [sequences(batch) for batch in plain.epoch(1)]

    @pytest.mark.parametrize("balance", ["none", "load"])
    @pytest.mark.parametrize("size", [{"batch_size": 8}, {"batch_size": None, "token_budget": 200}])
    def test_any_step_resumes_exactly(self, make: Make, balance: str, size: dict[str, int | None]) -> None:
        def run(batches: TrainingBatches, epochs: range, first: int = 0) -> list[list[tuple[int, ...]]]:
            return [sequences(b) for e in epochs for b in batches.epoch(e, first if e == epochs[0] else 0)]

        straight = run(make(balance, shuffle_ties=True, **size), range(3))
        for stop in (2, 3, 4):
            before, done = make(balance, shuffle_ties=True, **size), run(make(balance, **size), range(1))
            begun = before.epoch(1)
            first = run(before, range(1))
            assert len(first) == len(done)
            first += [sequences(next(begun)) for _ in range(stop)]
            after = make(balance, shuffle_ties=True, **size)
            after.load_tensors(before.tensors())
            assert first + run(after, range(1, 3), stop) == straight

    def test_epochs_and_seeds_draw_anew(self, make: Make) -> None:
        def lengths(batches: TrainingBatches, epoch: int) -> dict[int, int]:
            return {s[-1]: len(s) for batch in batches.epoch(epoch) for s in sequences(batch)}

        first = lengths(make("none"), 0)
        assert first == lengths(make("none"), 0)
        assert first != lengths(make("none"), 1)
        assert first != lengths(make("none", seed=4), 0)

    def test_a_token_budget_holds(self, make: Make) -> None:
        batches = list(make("none", batch_size=None, token_budget=200).epoch(0))
        assert max(batch.num_tokens for batch in batches) <= 200
        assert len(batches) == make("none", batch_size=None, token_budget=200).steps(0)
        balanced = [batch.num_tokens for batch in make("load", batch_size=None, token_budget=200).epoch(0)]
        assert np.mean(balanced) < 200

    @pytest.mark.parametrize("windows", ["latest", "all"])
    def test_shares_of_a_plain_batch_make_up_the_batch(self, make: Make, windows: str) -> None:
        alone = [sequences(b) for b in make("none", windows=windows).epoch(0)]
        shares = [[sequences(b) for b in make("none", windows=windows, share=Share(r, 3)).epoch(0)] for r in range(3)]
        for step, batch in enumerate(alone):
            assert [len(s[step]) for s in shares] == [len(batch[r::3]) for r in range(3)]
            assert sorted(s for share in shares for s in share[step]) == sorted(batch)

    def test_load_without_gamma_is_refused(self, data: PreparedData) -> None:
        with pytest.raises(InputError, match="gamma"):
            TrainingBatches(data, max_length=80, stochastic_length=StochasticLengthConfig(balance="load"))


def test_a_share_is_one_of_the_ranks() -> None:
    with pytest.raises(InputError, match="expected 0 to 1"):
        Share(2, 2)
