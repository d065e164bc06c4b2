"""What a simulated lifelong history is made of, and how much of it depends on events how far back."""

from __future__ import annotations

import math

from pydantic import Field, field_validator, model_validator

from longview.config import Config
from longview.errors import InputError

START = 1_704_067_200  # 2024-01-01 00:00 UTC, in seconds
DAY = 86_400
WEEK = 7 * DAY
YEAR = 365 * DAY
SESSION_GAP = 1_800  # seconds; a longer pause begins a new session
STEP = 45  # seconds between the events of a session, in the mean
SURE = 3.0  # standard deviations by which a habit rests longer than its band's distance


class Band(Config):
    """Habits that return after at least about `distance` events; their answers are `share` of all events."""

    distance: int = Field(ge=1, description="events since the habit was last seen, nearly always at least")
    share: float = Field(gt=0, lt=1, description="share of all events that are answers of this band")


class Family(Config):
    """Habits of one kind: `topics` of them, of which each step may start one, drawn from the `pool` longest unused.

    `rate` is the probability that an event which continues nothing starts one; an episode is a cue and `answers`
    answers. A topic just used rests for `rest` uses of other topics.
    """

    name: str
    distance: int
    answers: int
    rate: float
    pool: int
    rest: int
    first_topic: int
    first_slot: int

    @property
    def topics(self) -> int:
        return self.pool + self.rest

    @property
    def slots(self) -> int:
        return self.topics * self.answers


class LifelongConfig(Config):
    """The rules of a simulated lifelong log; with `seed` and a user's number they fix that user's every event."""

    users: int = Field(default=1_000, ge=1)
    max_history: int = Field(default=16_384, ge=2, description="events of the longest history")
    events_per_user: int | None = Field(
        default=None, ge=2, description="median of the lengths (log-normal); by default all have max_history"
    )
    seed: int = Field(default=0, ge=0)
    days: int = Field(default=730, ge=1, description="time the log covers")
    bands: tuple[Band, ...] = (
        Band(distance=256, share=0.08),
        Band(distance=1_024, share=0.08),
        Band(distance=4_096, share=0.08),
    )
    answers: int = Field(default=3, ge=1, description="answers of an episode, after its cue")
    choices: int = Field(default=32, ge=2, description="items among which an answer was chosen at first")
    drift: float = Field(default=0.05, ge=0, lt=1, description="probability that an answer is chosen anew")
    identity_topics: int = Field(default=64, ge=0, description="traits shown once, in a user's first events")
    identity_share: float = Field(default=0.01, ge=0, lt=1, description="share of events that are answers of traits")
    season_share: float = Field(default=0.06, ge=0, lt=1)
    seasons: int = Field(default=52, ge=1, description="seasons of a year")
    season_loyalty: float = Field(default=0.6, ge=0, lt=1, description="probability that a season's item is the last")
    items: int = Field(default=4_000, ge=16, description="items of the open catalogue; the rest follows from the bands")
    markov: float = Field(default=0.4, ge=0, lt=1, description="share of open events that move on from the last one")
    noise: float = Field(default=0.05, ge=0, lt=1, description="share of open events drawn uniformly")
    skew: float = Field(default=0.9, ge=0, description="exponent of the popularity of open items")
    born_later: float = Field(default=0.4, ge=0, le=0.9, description="share of open items that appear during the log")
    die_early: float = Field(default=0.4, ge=0, le=0.9, description="share of open items that disappear during it")
    session_length: float = Field(default=30.0, ge=1, description="events of a session, in the mean")
    click_again: float = Field(default=0.85, ge=0, le=1, description="P(click) where the habit's last was clicked")
    click_before: float = Field(default=0.15, ge=0, le=1, description="P(click) where it was not")
    bought: tuple[str, ...] = Field(
        default=(),
        description="components (of habits or traits) whose answers are always bought, and nothing else ever is",
    )
    oracle_events: int = Field(default=16, ge=1, description="newest events of each user that the oracle describes")
    ending: tuple[str, ...] = Field(
        default=(),
        description="components of the last event: what follows a user's last event of these kinds is cut off",
    )
    windows: tuple[int, ...] = Field(default=(256, 1_024, 4_096, 16_384), description="visible events of an oracle")

    @field_validator("ending", "bought", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else () if value is None else value

    @property
    def step_length(self) -> float:
        """Events of a step, an episode or a single event, in the mean."""
        return 1 / (1 - sum(band.share for band in self.bands) - self._identity_share)

    @property
    def span(self) -> int:
        """Seconds the log covers."""
        return self.days * DAY

    @property
    def season_rate(self) -> float:
        """Probability that an event which continues nothing is one of the season."""
        return self.season_share * self.step_length

    @property
    def open_rate(self) -> float:
        """Probability that an event which continues nothing is of the open catalogue."""
        return 1 - self.season_rate - sum(family.rate for family in self.families)

    @property
    def settled_click(self) -> float:
        """P(click) of a habit about which nothing is known: the stationary value of its chain."""
        return self.click_before / (1 - self.click_again + self.click_before)

    @property
    def families(self) -> tuple[Family, ...]:
        """All habits: one family a band, then the traits of identity."""
        found: list[Family] = []
        for band in self.bands:
            uses = band.distance * band.share / self.answers  # within the distance, in the mean
            rest = math.ceil(uses + SURE * math.sqrt(uses))
            pool = max(4, round(uses / 2))
            found.append(self._family(found, f"recall-{band.distance}", band.distance, band.share, pool, rest))
        if self._identity_share:
            pool = max(1, self.identity_topics // 4)
            rest = self.identity_topics - pool
            apart = int(max(0.0, rest - SURE * math.sqrt(rest)) / self.identity_share)
            found.append(self._family(found, "identity", apart, self.identity_share, pool, rest))
        return tuple(found)

    @property
    def _identity_share(self) -> float:
        return self.identity_share if self.identity_topics else 0.0

    @property
    def introduction(self) -> int:
        """Events at the beginning of a history that show the traits."""
        return self.identity_topics if self._identity_share else 0

    @property
    def narrowest(self) -> int:
        """The least window of an oracle: it holds the introduction, and the last open event of nearly any session."""
        return max(64, self.introduction)

    def check_window(self, window: int | None) -> None:
        """Refuse a window (None: all of the history) that is too narrow for exact predictions.

        Raises:
            InputError: it is.
        """
        if window is not None and window < self.narrowest:
            raise InputError(f"window {window}: an oracle sees at least {self.narrowest} events; None is all of them")

    def _family(self, before: list[Family], name: str, distance: int, share: float, pool: int, rest: int) -> Family:
        answers = 1 if name == "identity" else self.answers
        return Family(
            name=name,
            distance=distance,
            answers=answers,
            rate=share * self.step_length / answers,
            pool=pool,
            rest=rest,
            first_topic=sum(f.topics for f in before),
            first_slot=sum(f.slots for f in before),
        )

    @model_validator(mode="after")
    def _consistent(self) -> LifelongConfig:
        shares = [(band.share, self.answers) for band in self.bands] + [(self._identity_share, 1)]
        total = sum(share * (1 + 1 / answers) for share, answers in shares) + self.season_share
        if total > 0.95:
            raise ValueError(f"cues, answers and seasons are {total:.0%} of all events; lower the shares to 95%")
        if self.markov + self.noise >= 1:
            raise ValueError(
                f"markov {self.markov} and noise {self.noise} leave no open event to popularity; lower one"
            )
        if self.click_again < self.click_before:
            raise ValueError("click_again must be at least click_before: what was clicked is clicked again")
        if self.click_again == 1 and self.click_before == 0:
            raise ValueError("click_again 1 with click_before 0 never changes; move one of them inwards")
        if len({band.distance for band in self.bands}) < len(self.bands):
            raise ValueError("two bands have the same distance; merge them by adding their shares")
        known = component_names(self)
        for name in self.ending:
            if name not in known:
                raise ValueError(f"ending {name!r} is no component of this world; there are: {', '.join(known)}")
        habits = [family.name for family in self.families]
        for name in self.bought:
            if name not in habits:
                raise ValueError(f"bought {name!r} is no habit of this world; there are: {', '.join(habits) or 'none'}")
        self._check_lengths()
        return self

    def _check_lengths(self) -> None:
        farthest = max((band.distance for band in self.bands), default=0)
        if self.max_history < 2 * farthest:
            raise ValueError(
                f"max_history {self.max_history:,} is too short for the band at {farthest:,} events: nothing could "
                f"return; set max_history to {2 * farthest:,} or more, or give bands only up to "
                f'{self.max_history // 2:,} events (--set "bands=[{{distance: 64, share: 0.2}}]")'
            )
        if self.events_per_user is not None and self.events_per_user > self.max_history:
            raise ValueError(f"events_per_user {self.events_per_user:,} is above max_history {self.max_history:,}")
        if self.max_history < 2 * self.introduction:
            raise ValueError(
                f"max_history {self.max_history:,} is too short for {self.introduction} identity_topics, which take "
                f"the first events; set it to {2 * self.introduction} or more, or identity_topics lower"
            )
        if any(window < self.narrowest for window in self.windows):
            raise ValueError(f"windows {self.windows}: an oracle sees at least {self.narrowest} events")
        seconds = self.max_history * (STEP + SESSION_GAP / self.session_length)
        if seconds > 0.7 * self.span:
            raise ValueError(
                f"{self.max_history:,} events take {seconds / DAY:.0f} days without a pause; set days to "
                f"{math.ceil(seconds / DAY / 0.7)} or more"
            )


def component_names(config: LifelongConfig) -> tuple[str, ...]:
    """Return the names of what makes events: each family's answers, then the other components."""
    families = tuple(family.name for family in config.families)
    return (*families, "season", "move", "popularity", "noise", "cue", "introduction")
