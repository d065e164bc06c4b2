"""Several runs of one configuration with different seeds, as one result: the format of `results/*.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation.baselines import evaluate_baselines
from longview.evaluation.environment import environment
from longview.evaluation.impression_report import ImpressionReport
from longview.models.baselines import BASELINES


def summarise(
    runs: Sequence[Mapping[str, Any]],
    *,
    command: str,
    name: str | None = None,
    baselines: Sequence[ImpressionReport] = (),
) -> dict[str, Any]:
    """Return mean and standard deviation over the seeds of `runs`, with all that is needed to run them again.

    Args:
        runs: the `result.json` of each run, as mappings.
        command: the command that makes these runs from a clean clone.
        name: what the tables call the result, by default the name of the runs' configuration.
        baselines: of ranking, on the same impressions.

    Returns:
        `name, dataset, split, protocol, fingerprint, config, seeds` (one entry a run: `seed, metrics,
        validation_metrics, epochs, best_epoch, seconds`), `mean` and `std` (of `n − 1`; 0 for one run) of every
        test metric, `environment` and `command`; of runs that rank candidates also `impressions` (a hash of candidates
        and labels) and `baselines`; JSON-ready.

    Raises:
        InputError: no runs, repeated seeds, or runs that differ in data, protocol or configuration.
    """
    if not runs:
        raise InputError("no runs to summarise")
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"these runs repeat a seed ({seeds}); each must have its own")
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in zip(("data", "configuration"), _identity(first), _identity(run), strict=True):
            if one != other:
                raise InputError(f"runs of seeds {first['seed']} and {run['seed']} differ in their {what}")
    return {
        "name": name or first["name"],
        **_setting(first["test"]),
        "config": _without_seed(first["config"]),
        "seeds": [_entry(run) for run in runs],
        **_moments([_metrics(run, "test") for run in runs]),
        **({"baselines": [_baseline(report) for report in baselines]} if baselines else {}),
        "environment": first.get("environment", {}),
        "command": command,
    }


def baseline_studies(
    data: PreparedData, *, command: str, names: Sequence[str] = tuple(BASELINES)
) -> list[dict[str, Any]]:
    """Evaluate the baselines on test and return each in the format of `summarise`; they have no seed to vary.

    Baselines that the data rules out are left out.
    """
    results, here = evaluate_baselines(data, "test", names=names), environment()
    return [
        {
            "name": report.name,
            **_setting(report.to_dict()),
            "baseline": True,
            "config": {},
            "seeds": [
                {
                    "seed": None,
                    "metrics": report.metrics,
                    "intervals": report.to_dict()["intervals"],
                    "validation_metrics": None,
                    "epochs": None,
                    "seconds": results.fit_seconds[report.name],
                }
            ],
            **_moments([report.metrics]),
            "environment": here,
            "command": command,
        }
        for report in results.reports
    ]


def _setting(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": report["data"],
        "split": str(report["protocol"]).partition(":")[0],
        "protocol": report["protocol"],
        "fingerprint": report["fingerprint"],
        **({"impressions": report["impressions"]} if "impressions" in report else {}),
    }


def _baseline(report: ImpressionReport) -> dict[str, Any]:
    values = report.to_dict()
    return {key: values[key] for key in ("name", "metrics", "intervals", "impressions")}


def _metrics(run: Mapping[str, Any], which: str) -> dict[str, float]:
    """Return the metrics of everything a run was trained for; the names of retrieval and ranking differ."""
    parts = [*run.get("further", []), run]
    return {name: value for part in parts for name, value in part[which]["metrics"].items()}


def _entry(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": run["seed"],
        "metrics": _metrics(run, "test"),
        "validation_metrics": _metrics(run, "validation"),
        "epochs": run["epochs"],
        "best_epoch": run.get("best_epoch"),
        "seconds": run["seconds"],
    }


def _moments(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = [name for name in metrics[0] if all(name in one for one in metrics)]
    values = {name: [one[name] for one in metrics] for name in names}
    return {
        "mean": {name: fmean(each) for name, each in values.items()},
        "std": {name: stdev(each) if len(each) > 1 else 0.0 for name, each in values.items()},
    }


def _identity(run: Mapping[str, Any]) -> tuple[Any, Any]:
    test = run["test"]
    protocol = [test["fingerprint"], test["split"], test.get("exclude_seen"), test.get("impressions")]
    return protocol, _without_seed(run["config"])


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    loop = {key: value for key, value in config.get("loop", {}).items() if key != "seed"}
    return {**config, "loop": loop} if "loop" in config else dict(config)
