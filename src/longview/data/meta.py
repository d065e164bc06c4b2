"""What `meta.json` of a prepared data set says."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from longview.config import Config

SCHEMA_VERSION = 1


class SplitSpec(Config):
    """How a data set is divided; with the events it determines training, validation and test exactly.

    `leave-last-out`: a user's last event is the test target, the one before it the validation target.
    `global-time`: a target is a user's last event after `test_after` (test) or in
    (`validation_after`, `test_after`] (validation); training stops at `validation_after`. Both cut-offs are
    the `quantile` of event times: of all events, then of the events at or before `test_after`.
    """

    kind: Literal["leave-last-out", "global-time"] = "leave-last-out"
    quantile: float = Field(default=0.9, gt=0, lt=1)
    test_after: int | None = None
    validation_after: int | None = None


class Meta(Config):
    """The counts, columns, split and fingerprint of a prepared data set."""

    schema_version: int = SCHEMA_VERSION
    name: str
    num_users: int = Field(ge=0)
    num_items: int = Field(ge=0)
    num_events: int = Field(ge=0)
    has_time: bool
    time_range: tuple[int, int] | None = None
    actions: tuple[str, ...] = ()
    strengths: tuple[str, ...] = ()
    split: SplitSpec = SplitSpec()
    fingerprint: str
    simulated: bool = False
    repeats: bool = Field(default=False, description="items come again by design: evaluate with seen items kept in")
    columns: dict[str, Any] = {}
    card: dict[str, Any] = {}
