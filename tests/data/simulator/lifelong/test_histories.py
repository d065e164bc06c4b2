"""Histories keep to the rules: seeded by user, shares, gaps, births and deaths, sessions, actions."""

from __future__ import annotations

import numpy as np
import pytest

from longview.data.simulator.lifelong import Band, Histories, blocks, component_names, histories
from longview.data.simulator.lifelong.config import SESSION_GAP, START, WEEK
from tests.data.simulator.lifelong.worlds import medium, tiny

COLUMNS = ("item", "time", "action", "watch", "component", "distance")


@pytest.fixture(scope="module")
def made() -> Histories:
    return histories(medium())


def of(made: Histories, component: str) -> np.ndarray:
    return made.component == component_names(made.catalogue.config).index(component)


def users(made: Histories) -> np.ndarray:
    return np.repeat(np.arange(made.num_users), np.diff(made.offsets))


def test_a_user_is_the_same_whoever_else_is_simulated() -> None:
    everybody = histories(tiny())
    some = histories(tiny(users=3), first_user=7, num_users=5)
    rows = slice(everybody.offsets[7], everybody.offsets[12])
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(everybody, name)[rows], getattr(some, name), err_msg=name)


def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.data.simulator.lifelong.generate.BLOCK_EVENTS", 4_000)
    config = tiny(events_per_user=150)
    parts, whole = list(blocks(config)), histories(config)
    assert len(parts) > 3
    for name in COLUMNS:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


def test_another_seed_is_another_world() -> None:
    first, second = (histories(tiny(seed=seed), num_users=2) for seed in (1, 2))
    assert (first.item != second.item).mean() > 0.5
    assert (first.catalogue.public != second.catalogue.public).any()


def test_lengths_are_as_asked(made: Histories) -> None:
    assert set(np.diff(made.offsets)) == {3_000}
    lengths = np.diff(histories(tiny(events_per_user=200, users=400)).offsets)
    assert np.median(lengths) == pytest.approx(200, rel=0.1)
    assert lengths.min() >= 12
    assert lengths.max() <= 600


def test_histories_may_end_with_a_component_and_are_the_same_until_then() -> None:
    whole, cut = histories(tiny()), histories(tiny(ending="identity"))
    assert of(cut, "identity")[cut.offsets[1:] - 1].all()
    assert (np.diff(cut.offsets) <= 600).all()
    for user in range(3):
        kept = slice(whole.offsets[user], whole.offsets[user] + np.diff(cut.offsets)[user])
        for name in COLUMNS:
            ours = getattr(cut, name)[cut.offsets[user] : cut.offsets[user + 1]]
            np.testing.assert_array_equal(ours, getattr(whole, name)[kept], err_msg=name)
        assert not of(whole, "identity")[kept.stop : whole.offsets[user + 1]].any()
    # Nobody's history is cut to nothing where the component does not occur.
    rare = histories(tiny(ending="noise", noise=1e-9))
    assert set(np.diff(rare.offsets)) == {600}


def test_components_have_their_shares(made: Histories) -> None:
    config = made.catalogue.config
    later = np.arange(made.num_events) - made.offsets[users(made)] >= config.introduction
    share = {name: (of(made, name) & later).sum() / later.sum() for name in component_names(config)}
    for band in config.bands:
        assert share[f"recall-{band.distance}"] == pytest.approx(band.share, rel=0.05)
    assert share["identity"] == pytest.approx(config.identity_share, rel=0.08)
    assert share["season"] == pytest.approx(config.season_share, rel=0.05)
    cues = sum(band.share / config.answers for band in config.bands) + config.identity_share
    assert share["cue"] == pytest.approx(cues, rel=0.05)
    opened = share["move"] + share["popularity"] + share["noise"]
    assert opened == pytest.approx(config.open_rate / config.step_length, rel=0.02)
    assert share["noise"] / opened == pytest.approx(config.noise, rel=0.08)
    assert share["introduction"] == 0


def test_habits_return_after_the_distance_of_their_band(made: Histories) -> None:
    config = made.catalogue.config
    for band, family in zip(config.bands, config.families, strict=False):
        gaps = made.distance[of(made, family.name)]
        gaps = gaps[gaps > 0]
        assert (gaps >= band.distance).mean() > 0.99
        assert np.median(gaps) < 4 * band.distance
        assert len(gaps) > 1_000


def test_the_distance_is_that_of_the_last_item_of_the_slot(made: Histories) -> None:
    choices = made.catalogue.config.choices
    slotted = np.flatnonzero(made.item < made.catalogue.first_cue)
    last: dict[tuple[int, int], int] = {}
    user = users(made)
    for row in slotted[:40_000].tolist():
        key = (int(user[row]), int(made.item[row]) // choices)
        assert made.distance[row] == (row - last[key] if key in last else 0)
        last[key] = row


@pytest.mark.parametrize("component", ["recall-500", "identity", "season"])
def test_an_answer_is_the_one_of_last_time_but_for_drift(made: Histories, component: str) -> None:
    config = made.catalogue.config
    rows = np.flatnonzero(of(made, component) & (made.distance > 0))
    same = made.item[rows] == made.item[rows - made.distance[rows]]
    anew = 1 - config.season_loyalty if component == "season" else config.drift
    expected = 1 - anew * (1 - 1 / config.choices)
    assert same.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(rows)))


def test_episodes_are_a_cue_and_its_answers_in_order(made: Histories) -> None:
    catalogue = made.catalogue
    cues = np.flatnonzero(of(made, "cue"))
    whole = cues + 3 < made.offsets[1:][users(made)[cues]]  # the last of a user may be cut short
    cues = cues[whole]
    family = catalogue.families[0]
    topic = made.item[cues] - catalogue.first_cue
    cues, topic = cues[topic < family.topics], topic[topic < family.topics]
    assert len(cues) > 100
    for part in range(3):
        np.testing.assert_array_equal(made.item[cues + 1 + part] // catalogue.config.choices, topic * 3 + part)


def test_traits_are_shown_first_and_all_of_them(made: Histories) -> None:
    config, catalogue = made.catalogue.config, made.catalogue
    traits = catalogue.families[-1]
    for begin in made.offsets[:-1]:
        shown = made.item[begin : begin + config.introduction] // config.choices - traits.first_slot
        assert sorted(shown.tolist()) == list(range(config.identity_topics))


def test_open_items_are_met_while_they_exist(made: Histories) -> None:
    catalogue = made.catalogue
    rows = np.flatnonzero(made.item >= catalogue.first_open)
    number, week = made.item[rows] - catalogue.first_open, (made.time[rows] - START) // WEEK
    assert (week >= catalogue.birth[number]).all()
    assert (week <= catalogue.death[number]).all()
    assert (catalogue.birth > 0).mean() == pytest.approx(0.36, abs=0.08)
    assert (catalogue.death < catalogue.weeks - 1).mean() == pytest.approx(0.36, abs=0.08)


def test_popular_items_are_met_more_often_than_others(made: Histories) -> None:
    catalogue = made.catalogue
    popular = made.item[of(made, "popularity")] - catalogue.first_open
    counts = np.bincount(popular, minlength=catalogue.config.items)
    expected = catalogue.popularity[catalogue.week(made.time[of(made, "popularity")])].sum(0)
    assert np.corrcoef(counts, expected)[0, 1] > 0.99
    np.testing.assert_allclose(counts.sum(), expected.sum(), rtol=1e-9)
    common = expected > 50
    assert (np.abs(counts - expected)[common] / np.sqrt(expected[common])).max() < 5


def test_seasons_follow_the_time_of_the_year(made: Histories) -> None:
    rows = of(made, "season")
    slot = made.item[rows] // made.catalogue.config.choices
    np.testing.assert_array_equal(slot, made.catalogue.season_slot(made.time[rows]))


def test_sessions_are_short_and_time_never_goes_back(made: Histories) -> None:
    config = made.catalogue.config
    gap = np.diff(made.time)[users(made)[1:] == users(made)[:-1]]
    assert gap.min() >= 1
    sessions = made.num_users + (gap >= SESSION_GAP).sum()
    assert made.num_events / sessions == pytest.approx(config.session_length, rel=0.1)
    assert gap[gap < SESSION_GAP].max() < SESSION_GAP - 200
    assert made.time.max() < START + config.span
    stay = made.time[made.offsets[1:] - 1] - made.time[made.offsets[:-1]]
    assert stay.min() > 0.85 * config.span


def test_moves_go_to_a_successor_of_the_item_before_in_the_session(made: Histories) -> None:
    rows = np.flatnonzero(of(made, "move"))
    before = made.item[rows - made.distance[rows]] - made.catalogue.first_open
    successor = made.catalogue.successors[before] == (made.item[rows] - made.catalogue.first_open)[:, None]
    assert (successor.sum(1) == 1).all()
    assert (made.distance[rows] > 0).all()
    starts = np.append(True, np.diff(made.time) >= SESSION_GAP)
    session = np.cumsum(starts | np.append(True, np.diff(users(made)) > 0))
    assert (session[rows] == session[rows - made.distance[rows]]).all()


def test_actions_build_on_each_other_and_take_longer(made: Histories) -> None:
    view, click, like, buy = ((made.action >> bit & 1).astype(bool) for bit in range(4))
    assert view.all()
    assert click[like].all()
    assert like[buy].all()
    assert 0 < buy.mean() < like.mean() < click.mean() < 1
    assert made.watch[buy].mean() > made.watch[like & ~buy].mean() > made.watch[~click].mean() > 0


@pytest.mark.parametrize("bought", ["identity", ["recall-60", "identity"]])
def test_answers_may_be_what_is_bought_and_nothing_else_changes(bought: str | list[str]) -> None:
    plain, made = histories(tiny(users=8)), histories(tiny(users=8, bought=bought))
    wanted = np.any([of(made, name) for name in ([bought] if isinstance(bought, str) else bought)], axis=0)
    np.testing.assert_array_equal(made.action & 8 > 0, wanted)
    assert (made.action[wanted] == 15).all()
    np.testing.assert_array_equal((made.action & 7)[~wanted], (plain.action & 7)[~wanted])
    for name in ("item", "time", "component", "distance"):
        np.testing.assert_array_equal(getattr(made, name), getattr(plain, name))


def test_a_click_follows_from_the_last_of_the_habit(made: Histories) -> None:
    config = made.catalogue.config
    click = made.action >> 1 & 1
    rows = np.flatnonzero(of(made, "recall-500") & (made.distance > 0))
    before = click[rows - made.distance[rows]] == 1
    assert click[rows][before].mean() == pytest.approx(config.click_again, abs=0.02)
    assert click[rows][~before].mean() == pytest.approx(config.click_before, abs=0.02)


def test_the_smallest_worlds_work() -> None:
    for changes in (
        {"users": 1},
        {"bands": (), "identity_topics": 0, "max_history": 2},
        {"bands": (Band(distance=1, share=0.1),), "identity_topics": 1, "max_history": 4},
        {"season_share": 0.0, "noise": 0.0, "markov": 0.0, "skew": 0.0, "born_later": 0.0, "die_early": 0.0},
        {"seasons": 1, "items": 16, "choices": 2, "answers": 1},
        {"days": 2, "max_history": 400},
    ):
        config = tiny(**changes)
        assert histories(config).num_events == config.users * config.max_history
