"""What a simulated shop looks like."""

from __future__ import annotations

from pydantic import Field

from longview.config import Config

START = 1_704_067_200  # 2024-01-01 00:00 UTC, in seconds
DAY = 86_400


class SimulationConfig(Config):
    """The size of a simulated log and the strength of the habits in it; with `seed` it fixes every event."""

    users: int = Field(default=2_000, ge=1)
    items: int = Field(default=1_000, ge=1)
    max_history: int = Field(default=200, ge=2, description="events of the longest history")
    seed: int = Field(default=0, ge=0)
    days: int = Field(default=730, ge=1, description="time the log covers")
    tastes: int = Field(default=8, ge=1, description="long-lived tastes a user has, at most")
    session_length: float = Field(default=5.0, ge=1, description="mean events of one visit")
    explore: float = Field(default=0.1, ge=0, le=1, description="share of visits that follow no taste")
    born_later: float = Field(default=0.5, ge=0, le=1, description="share of items that appear during the log")

    @property
    def span(self) -> int:
        """Seconds the log covers."""
        return self.days * DAY

    @property
    def num_categories(self) -> int:
        return max(1, min(40, self.items // 40))

    @property
    def num_styles(self) -> int:
        return max(1, min(8, self.items // (self.num_categories * 10)))
