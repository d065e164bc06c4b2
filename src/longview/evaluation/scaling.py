"""A scaling study: what quality costs, for several models at several lengths and depths.

Three statements that must not be mixed up, each by its own name:

* slope: points of quality for ten times the compute, the b of `quality = a + b · log10(compute)`, least squares over an
  arm's settings (the mean over seeds is one point). The slope ratio is one arm's b over another's.
* exponent: the β of `best − quality = A · compute^−β`, least squares in logarithms over the same points; `best` is the
  oracle's quality on simulated data and 1 otherwise. The exponent ratio is one arm's β over another's.
* point ratio: at one length and depth, the compute of one arm over that of another, beside the share of its quality.

Compute is useful operations of training or of a request (`longview.models.flops`), or measured seconds of either.
"""

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
    finite,
    interval,
    resampled_means,
    settings_of,
    unpack,
)

AXES = {
    "training_flops": ("flops", "training"),
    "request_flops": ("flops", "request"),
    "training_seconds": ("seconds", "training"),
    "request_seconds": ("seconds", "request"),
}


def scaling_summary(
    metric: str, known: Known, oracle: Mapping[str, Any] | None, compare: Sequence[str] | None
) -> dict[str, Any]:
    """Return the points of every arm, the fits along each axis of compute, and the ratios of `compare`.

    Args:
        metric: `hr@K` or `ndcg@K`.
        known: labels `arm`, `length` and `depth`, and the record of a seed.
        oracle: of simulated data, from the study's records.
        compare: (first, second): ratios of slopes and exponents are the second's over the first's, those of compute
            the first's over the second's, so that more is better for the second.
    """
    settings = settings_of(metric, known)
    values = [setting.values for setting in settings]
    windows = None if oracle is None else oracle["windows"]["all"]
    best = unpack(windows[metric])[None] if windows and metric in windows else np.ones((1, values[0].shape[1]))
    study = _Study(settings, resampled_means([*values, best]), float(best.mean()))
    arms = list(dict.fromkeys(setting.labels["arm"] for setting in settings))
    pair = tuple(compare) if compare is not None and set(compare) <= set(arms) else None
    return {
        "method": f"quality is {metric} on the test targets. {_fits_in_words(windows is not None)} {METHOD}",
        "best_possible": best_possible(metric, oracle),
        "points": [study.point(place, oracle) for place in range(len(settings))],
        "fits": {arm: {axis: study.fits(arm, axis) for axis in AXES} for arm in arms},
        "ratios": None if pair is None else study.ratios(*pair),
        "longer_histories": {arm: study.longer(arm) for arm in arms},
    }


class _Study:
    """Settings with their resampled means (settings + 1, resamples); the last row is of the best possible."""

    def __init__(self, settings: Sequence[Setting], means: Floats, best: float) -> None:
        self.settings, self.means, self.best = settings, means[:-1], best
        self.best_means = means[-1]

    def point(self, place: int, oracle: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the table says of the setting at `place`."""
        setting = self.settings[place]
        return {
            **setting.labels,
            "seeds": [record["seed"] for record in setting.records],
            "quality": setting.mean,
            "std": setting.std,
            "interval": interval(self.means[place]),
            "parameters": setting.records[0]["parameters"],
            **setting.costs(),
            "components": by_component(setting.records, oracle),
        }

    def places(self, arm: str, **labels: Any) -> list[int]:
        wanted = {"arm": arm, **labels}
        return [n for n, s in enumerate(self.settings) if all(s.labels[key] == value for key, value in wanted.items())]

    def compute(self, places: Sequence[int], axis: str) -> Floats:
        return np.array([self.settings[place].average(*AXES[axis]) for place in places])

    def fits(self, arm: str, axis: str) -> dict[str, Any]:
        """Return the fit over all of an arm's points, and over the lengths at each depth."""
        return {
            "all": self._fit(self.places(arm), axis),
            "by_depth": {str(depth): self._fit(self.places(arm, depth=depth), axis) for depth in self._depths(arm)},
        }

    def ratios(self, first: str, second: str) -> dict[str, Any]:
        """Return slopes, exponents and points of the arm `second` over those of `first`, each by its name."""
        depths = [depth for depth in self._depths(first) if depth in self._depths(second)]

        def over(of: Any, **labels: Any) -> dict[str, Any]:
            pair = self.places(first, **labels), self.places(second, **labels)
            return {axis: self._ratio_of_fits(*pair, axis, of) for axis in AXES}

        return {
            "first": first,
            "second": second,
            "slope_ratio": over(self._slopes),
            "exponent_ratio": over(self._exponents),
            "slope_ratio_by_depth": {str(depth): over(self._slopes, depth=depth) for depth in depths},
            "point_ratios": self._point_ratios(first, second),
            "kept_at_longest": self._kept(first, second),
        }

    def longer(self, arm: str) -> list[dict[str, Any]]:
        """Return what the longest history is worth over the shortest: at each depth, and (None) over the depths."""
        found = []
        for depth in (*self._depths(arm), None):
            places = self.places(arm) if depth is None else self.places(arm, depth=depth)
            lengths = sorted({self.settings[place].labels["length"] for place in places})
            if len(lengths) < 2:
                continue
            short, long = (
                [place for place in places if self.settings[place].labels["length"] == length]
                for length in (lengths[0], lengths[-1])
            )
            found.append({
                "depth": depth,
                "from": lengths[0],
                "to": lengths[-1],
                "difference": self._quality(long) - self._quality(short),
                "interval": interval(self.means[long].mean(0) - self.means[short].mean(0)),
            })  # fmt: skip
        return found

    def _depths(self, arm: str) -> list[int]:
        return sorted({self.settings[place].labels["depth"] for place in self.places(arm)})

    def _quality(self, places: Sequence[int]) -> float:
        return float(np.mean([self.settings[place].mean for place in places]))

    def _kept(self, first: str, second: str) -> dict[str, Any] | None:
        """Return the share of `first`'s quality that `second` has with the longest history, over the depths of both."""
        length = max(self.settings[place].labels["length"] for place in self.places(first))
        found = {arm: self.places(arm, length=length) for arm in (first, second)}
        depths = [{self.settings[place].labels["depth"] for place in places} for places in found.values()]
        if not found[second] or depths[0] != depths[1]:
            return None
        below, above = (self.means[places].mean(0) for places in found.values())
        return {
            "length": length,
            "share": finite(float(_divided(*(np.array(self._quality(found[arm])) for arm in (second, first))))),
            "interval": interval(_divided(above, below)),
        }

    def _fit(self, places: Sequence[int], axis: str) -> dict[str, Any] | None:
        """Return slope, intercept and exponent with intervals; None without two distinct, known computes."""
        compute = self.compute(places, axis)
        if not _fits(compute):
            return None
        value = np.array([self.settings[place].mean for place in places])
        slope = _slope(compute, value[:, None])[0]
        exponent = -_slope(compute, _log(self.best - value)[:, None])[0]
        return {
            "points": len(places),
            "slope": float(slope),
            "slope_interval": interval(self._slopes(places, axis)),
            "intercept": float(value.mean() - slope * np.log10(compute).mean()),
            "exponent": finite(exponent),
            "exponent_interval": interval(self._exponents(places, axis)),
        }

    def _slopes(self, places: Sequence[int], axis: str) -> Floats:
        return _slope(self.compute(places, axis), self.means[places])

    def _exponents(self, places: Sequence[int], axis: str) -> Floats:
        return -_slope(self.compute(places, axis), _log(self.best_means - self.means[places]))

    def _ratio_of_fits(self, one: list[int], other: list[int], axis: str, of: Any) -> dict[str, Any] | None:
        """Return the ratio, its interval, and the share of resamples in which the first arm's is above zero.

        A ratio by something that may be zero has no finite interval: it is left out where that share is below 0.99.
        """
        if not all(_fits(self.compute(places, axis)) for places in (one, other)):
            return None
        key = "slope" if of == self._slopes else "exponent"
        fits = [self._fit(places, axis) for places in (one, other)]
        values = [np.nan if fit is None or fit[key] is None else fit[key] for fit in fits]
        below, above = of(one, axis), of(other, axis)
        positive = float((below > 0).mean())
        sure = positive >= 0.99
        return {
            "ratio": finite(values[1] / values[0]) if values[0] > 0 else None,
            "interval": interval(above / below) if sure else [None, None],
            "first_above_zero": positive,
        }

    def _point_ratios(self, first: str, second: str) -> list[dict[str, Any]]:
        found = []
        for place in self.places(first):
            labels = self.settings[place].labels
            for other in self.places(second, length=labels["length"], depth=labels["depth"]):
                cost = {axis: self.compute([place], axis)[0] / self.compute([other], axis)[0] for axis in AXES}
                below = self.settings[place].mean
                found.append({
                    "length": labels["length"],
                    "depth": labels["depth"],
                    **{axis: finite(value) for axis, value in cost.items()},
                    "quality_share": self.settings[other].mean / below if below > 0 else None,
                    "quality_share_interval": interval(_divided(self.means[other], self.means[place])),
                })  # fmt: skip
        return found


def _fits(compute: Floats) -> bool:
    """Return whether a line can be laid through these computes: all known, and two of them distinct."""
    return bool(np.isfinite(compute).all()) and len(np.unique(compute)) > 1


def _slope(compute: Floats, values: Floats) -> Floats:
    """Return the least-squares slopes of the columns of `values` (points, n) against log10 of `compute` (points,)."""
    x = np.log10(compute)
    x = x - x.mean()
    return np.asarray(x @ (values - values.mean(0)) / (x @ x))


def _log(gap: Floats) -> Floats:
    return np.asarray(np.log10(np.where(gap > 0, gap, np.nan)))


def _divided(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))


def _fits_in_words(has_oracle: bool) -> str:
    best = "the oracle's quality with all of the history" if has_oracle else "1"
    return (
        "slope: b of quality = a + b·log10(compute), least squares over an arm's settings, each the mean of its seeds; "
        f"exponent: β of best − quality = A·compute^−β, least squares in logarithms, best being {best}; point ratio: "
        "compute of one arm over another's at one length and depth. Compute: useful operations in closed form, or "
        "measured seconds; request: newest event's vector from nothing and scores of all items."
    )
