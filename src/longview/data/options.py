"""The options of `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from longview.config import Config
from longview.data.columns import Choice


class PrepareConfig(Config):
    """What `prepare` is told; every column that is not named is guessed, and the guess is shown."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    order: str | None = Field(default=None, description="column that orders events where there is no time")
    actions: tuple[str, ...] = Field(default=(), description="columns of action names, or 0/1 columns, one an action")
    strengths: tuple[str, ...] = Field(
        default=(), description="numbers of an event, such as a rating or seconds watched"
    )
    ignore: tuple[str, ...] = Field(default=(), description="columns never guessed to be anything")
    items: Path | None = Field(default=None, description="file of item features")
    users: Path | None = Field(default=None, description="file of user features")
    title: str | None = Field(default=None, description="column of the item file")
    category: str | None = Field(default=None, description="column of the item file")
    split: Literal["leave-last-out", "global-time"] | None = Field(
        default=None, description="global-time where the log has time, leave-last-out where it has order only"
    )
    quantile: float = Field(default=0.9, gt=0, lt=1, description="of event times, where the test period begins")
    min_user_events: int = Field(default=0, ge=0)
    min_item_events: int = Field(default=0, ge=0)
    keep_duplicates: bool = Field(default=False, description="keep repeats of (user, item, time) as events")
    drop_incomplete: bool = Field(default=False, description="leave rows without user, item or time out")
    name: str | None = Field(default=None, description="of the data set; that of the directory if not given")
    simulated: bool = Field(default=False, description="said in the card: nothing here is real")

    @property
    def choice(self) -> Choice:
        """The columns named."""
        return Choice(self.user, self.item, self.time, self.order, self.actions, self.strengths, self.ignore)
