"""Small studies: a grid that trains in seconds, over a simulated world of short histories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.training.studies import StudyConfig, load_study
from tests.training.conftest import no_pictures

__all__ = ["no_pictures"]

WORLD = {
    "users": 24,
    "max_history": 300,
    "bands": [{"distance": 40, "share": 0.15}],
    "items": 60,
    "identity_topics": 4,
    "choices": 4,
    "answers": 2,
    "seasons": 4,
    "windows": [64],
}
SETTINGS = {
    "model.width": 8,
    "model.layers": 1,
    "model.max_length": 64,
    "model.attention": {"local_window": 16, "global_size": 4},
    "model.embedding": {"time_gaps": "previous", "actions": "sum"},
    "batches.windows": "latest",
    "batches.token_budget": 1024,
    "loss": {"kind": "sampled", "num_negatives": 8},
    "loop.epochs": 1,
}
ABLATION: dict[str, Any] = {
    "kind": "ablation",
    "data": {"lifelong": WORLD},
    "preset": "ultra-small",
    "settings": SETTINGS,
    "seeds": [0, 1],
    "parts": {
        "mask": {"prefix": {}, "full": {"model.attention": {}}},
        "actions": {"merged": {}, "absent": {"model.embedding.actions": "none"}},
    },
}
SCALING: dict[str, Any] = {
    "kind": "scaling",
    "data": {"lifelong": WORLD},
    "preset": "ultra-small",
    "settings": SETTINGS,
    "seeds": [0],
    "lengths": [16, 64],
    "depths": [1, 2],
    "compare": ["HSTU", "ULTRA"],
    "arms": {
        "HSTU": {"settings": {"model.attention": {}}},
        "ULTRA": {"depths": {2: {"model.layers": 1, "model.truncation": {"length": 8, "layers": 1}}}},
    },
}


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    def write(values: dict[str, Any], **changes: Any) -> Path:
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        return file

    return write


@pytest.fixture
def make_study(write_study: Callable[..., Path]) -> Callable[..., StudyConfig]:
    return lambda values, **changes: load_study(write_study(values, **changes))
