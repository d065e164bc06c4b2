"""An ablation: what each part of a system is worth, in quality, operations and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longview.evaluation.study_quality import (
    METHOD,
    Floats,
    Known,
    Setting,
    best_possible,
    by_component,
    interval,
    resampled_means,
    settings_of,
)

REFERENCE = "reference"


def ablation_summary(
    metric: str, known: Known, oracle: Mapping[str, Any] | None, compare: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return a row for each variant of each part, beside the reference.

    `quality` is the mean over test users and seeds, `std` over seeds, `interval` of the mean; `difference` is quality
    minus the reference's, with an interval of its own from the same resamples. `relative` are costs over the
    reference's, those that were measured. Rows whose part is `reference` are the reference itself.

    Args:
        metric: `hr@K` or `ndcg@K`.
        known: labels `part` and `variant`, and the record of a seed.
        oracle: of simulated data, from the study's records.
        compare: not used by an ablation.
    """
    settings = settings_of(metric, known)
    means = resampled_means([setting.values for setting in settings])
    reference = next((n for n, s in enumerate(settings) if s.labels["part"] == REFERENCE), None)
    for place, setting in enumerate(settings):
        if reference is not None and _same_runs(setting, settings[reference]):
            means[place] = means[reference]
    return {
        "method": f"quality is {metric} on the test targets; {METHOD}; difference: from the reference",
        "best_possible": best_possible(metric, oracle),
        "rows": [_row(settings, means, place, reference, oracle) for place in range(len(settings))],
    }


def _same_runs(setting: Setting, other: Setting) -> bool:
    """Return whether two settings are the same runs under different names."""
    return len(setting.records) == len(other.records) and all(
        one is another for one, another in zip(setting.records, other.records, strict=True)
    )


def _row(
    settings: Sequence[Setting], means: Floats, place: int, reference: int | None, oracle: Mapping[str, Any] | None
) -> dict[str, Any]:
    setting = settings[place]
    names = setting.records[0]["metrics"]
    row: dict[str, Any] = {
        **setting.labels,
        "seeds": [record["seed"] for record in setting.records],
        "quality": setting.mean,
        "std": setting.std,
        "interval": interval(means[place]),
        "metrics": {name: float(np.mean([r["metrics"][name] for r in setting.records])) for name in names},
        "parameters": setting.records[0]["parameters"],
        **setting.costs(),
        "components": by_component(setting.records, oracle),
    }
    if reference is not None:
        base, costs = settings[reference], settings[reference].costs()
        row["is_reference"] = _same_runs(setting, base)
        row["difference"] = setting.mean - base.mean
        row["difference_interval"] = interval(means[place] - means[reference])
        row["relative"] = {
            group: {name: value / below[name] for name, value in of.items()}
            for group, of in setting.costs().items()
            if of is not None and (below := costs[group]) is not None
        }
    return row
