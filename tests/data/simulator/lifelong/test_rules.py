"""Rules that cannot hold together are refused with what to change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from longview.config import parse
from longview.data.simulator.lifelong import Band, LifelongConfig
from longview.errors import InputError
from tests.data.simulator.lifelong.worlds import tiny


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 0}, "users: Input should be greater than or equal to 1"),
        ({"users": -3}, "users: Input should be greater than or equal to 1"),
        ({"max_history": -1}, "max_history: Input should be greater than or equal to 2"),
        ({"max_history": 4_000}, "set max_history to 8,192 or more, or give bands only up to 2,000 events"),
        ({"max_history": 100, "bands": [], "windows": []}, "max_history 100 is too short for 64 identity_topics"),
        ({"events_per_user": 20_000}, "events_per_user 20,000 is above max_history 16,384"),
        ({"events_per_user": 0}, "events_per_user: Input should be greater than or equal to 2"),
        ({"bands": [{"distance": 0, "share": 0.1}]}, "distance: Input should be greater than or equal to 1"),
        ({"bands": [{"distance": 9, "share": 1.5}]}, "share: Input should be less than 1"),
        ({"bands": [{"distance": 9, "share": 0.1}] * 2}, "two bands have the same distance"),
        ({"bands": [{"distance": 9, "share": 0.8}]}, "lower the shares"),
        ({"markov": 0.7, "noise": 0.4}, "leave no open event to popularity"),
        ({"click_again": 0.1}, "click_again must be at least click_before"),
        ({"click_again": 1, "click_before": 0}, "never changes"),
        ({"windows": [8]}, "an oracle sees at least 64 events"),
        ({"days": 20}, "without a pause; set days to"),
        ({"ending": "recall"}, "ending 'recall' is no component of this world; there are: recall-256, recall-1024"),
        (
            {"bought": ["identity", "season"]},
            "bought 'season' is no habit of this world; there are: recall-256, recall-1024",
        ),
        ({"band": []}, "unknown key 'band' (did you mean 'bands'?)"),
    ],
)
def test_bad_rules_say_what_to_change(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"^rules: ") as caught:
        parse(LifelongConfig, changes, "rules")
    assert message in str(caught.value)


def test_steps_of_all_kinds_are_everything() -> None:
    for config in (LifelongConfig(), tiny(), tiny(bands=()), tiny(identity_topics=0), tiny(identity_topics=1)):
        assert config.open_rate > 0
        assert sum(f.rate for f in config.families) + config.season_rate + config.open_rate == pytest.approx(1)


def test_families_lie_side_by_side() -> None:
    families = LifelongConfig().families
    for before, after in pairwise(families):
        assert after.first_topic == before.first_topic + before.topics
        assert after.first_slot == before.first_slot + before.slots


def test_a_farther_band_rests_longer() -> None:
    near, far = LifelongConfig(bands=(Band(distance=256, share=0.1), Band(distance=4_096, share=0.1))).families[:2]
    assert far.rest > 8 * near.rest
