"""Small lifelong worlds for the tests of this folder."""

from __future__ import annotations

from typing import Any

from longview.data.simulator.lifelong import Band, Histories, LifelongConfig, Past


def tiny(**changes: Any) -> LifelongConfig:
    """A world of few items, for the obvious reference: histories of 600, two bands, traits, seasons."""
    values: dict[str, Any] = {
        "users": 40,
        "max_history": 600,
        "bands": (Band(distance=60, share=0.12), Band(distance=200, share=0.12)),
        "items": 120,
        "identity_topics": 10,
        "identity_share": 0.03,
        "choices": 6,
        "answers": 2,
        "seasons": 8,
        "session_length": 20,
        "windows": (64, 150),
        "days": 500,
    }
    return LifelongConfig(**{**values, **changes})


def medium(**changes: Any) -> LifelongConfig:
    """A world for shares and gaps: 100 users with 3,000 events each, the default shares at shorter distances."""
    values: dict[str, Any] = {
        "users": 100,
        "max_history": 3_000,
        "bands": (Band(distance=100, share=0.1), Band(distance=500, share=0.1)),
        "items": 500,
        "windows": (128, 512),
        "seed": 1,
    }
    return LifelongConfig(**{**values, **changes})


def past_of(made: Histories) -> Past:
    """What an observer sees of `made`."""
    return Past(made.catalogue, made.offsets, made.item, made.time, made.action)
