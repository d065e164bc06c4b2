"""The parts of a result card about ranking: what the predictions of candidates were worth, and how calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longview.evaluation.impression_report import leading_metric, shown_metrics
from longview.evaluation.markdown import table

WITH_INTERVAL = ("ne", "auc", "gauc", "mae")
NAMES = {"ne": "NE", "auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "ece": "ECE", "mae": "MAE", "rmse": "RMSE"}


def is_ranking(report: Mapping[str, Any]) -> bool:
    """Return whether a report as JSON is an `ImpressionReport`."""
    return report.get("kind") == "ranking"


def headline(report: Mapping[str, Any]) -> str:
    """Return the figures of a ranking report in one sentence."""
    parts = [f"{label(name)} {figure(report, name)}" for name in shown_metrics([report["metrics"]]) if main(name)]
    return (
        f"**{', '.join(parts)}** on {report['split']}, {report['num_candidates']:,} candidates in "
        f"{report['num_requests']:,} requests of {report['num_users']:,} users."
    )


def beaten_by(outcome: Mapping[str, Any]) -> str:
    """Return the sentence that a baseline is better, or nothing."""
    test = outcome["test"]
    name = leading_metric(test["metrics"])
    if not name:
        return ""
    best = min(outcome.get("baselines", []), key=lambda r: r["metrics"].get(name, float("inf")), default=None)
    if best is None or best["metrics"].get(name, float("inf")) >= test["metrics"][name]:
        return ""
    return f" **The baseline {best['name']} is better than this model ({label(name)} {best['metrics'][name]:.4f}).**"


def sections(outcome: Mapping[str, Any]) -> list[str]:
    """Return the sections of a ranking outcome: beside the baselines, calibration, protocol."""
    return [_comparison(outcome), _calibration(outcome["test"]), _protocol(outcome["test"])]


def label(metric: str) -> str:
    """Return how people read the name of a metric.

    Example:
        >>> label("like.ne"), label("auc")
        ('like NE', 'AUC')
    """
    task, _, name = metric.rpartition(".")
    return f"{task} {NAMES.get(name, name)}".strip()


def main(metric: str) -> bool:
    """Return whether a metric belongs in a headline."""
    return metric.rpartition(".")[2] in WITH_INTERVAL


def figure(report: Mapping[str, Any], name: str) -> str:
    """Return a metric of a report with its interval, as people read it."""
    value = report["metrics"].get(name)
    if value is None:
        return "–"
    interval = report.get("intervals", {}).get(name) if main(name) else None
    return f"{value:.4f}" + (f" ({interval[0]:.4f}–{interval[1]:.4f})" if interval else "")


def _comparison(outcome: Mapping[str, Any]) -> str:
    test = outcome["test"]
    reports: Sequence[Mapping[str, Any]] = [test, *outcome.get("baselines", [])]
    columns = shown_metrics([report["metrics"] for report in reports])
    first = leading_metric(test["metrics"])
    ordered = sorted(reports, key=lambda r: r["metrics"].get(first, float("inf")))
    rows = [
        [f"**{r['name']}**" if r is test else r["name"], *(figure(r, column) for column in columns)] for r in ordered
    ]
    excluded = "; ".join(
        f"{task}: {left['users']:,} users with {left['impressions']:,} candidates"
        for task, left in test.get("one_class", {}).items()
    )
    return (
        f"## Ranking, beside the baselines, on {test['split']}\n\n{table(['model', *map(label, columns)], rows)}\n\n"
        "In brackets: 95 % bootstrap intervals over users. NE is the log loss over that of the rate of the evaluated "
        "candidates (below 1 is better than any constant), GAUC the AUC within a user, ECE the expected calibration "
        "error." + (f" Users with one class only count in no GAUC ({excluded})." if excluded else "")
    )


def _calibration(test: Mapping[str, Any]) -> str:
    parts = []
    for task, bins in test.get("reliability", {}).items():
        rows = [[f"{predicted:.3f}", f"{observed:.3f}", f"{int(count):,}"] for predicted, observed, count in bins]
        parts.append(f"### {task}\n\n" + table(["predicted", "observed", "candidates"], rows))
    if not parts:
        return ""
    return "## Calibration\n\nBins of about equally many candidates, least probable first.\n\n" + "\n\n".join(parts)


def _protocol(test: Mapping[str, Any]) -> str:
    tasks = "\n".join(f"- {_task(task)}" for task in test["tasks"])
    return (
        f"## Protocol of ranking\n\n{test['protocol'][0].upper()}{test['protocol'][1:]}.\n\n{tasks}\n"
        f"- Impressions `{test['impressions']}`: results compare only where it is the same."
    )


def _task(task: Mapping[str, Any]) -> str:
    if task.get("action") is not None:
        return f"Task {task['name']}: the action {task['action']} happens ({task['mean']:.1%} of training candidates)."
    if task.get("at_least") is not None:
        return (
            f"Task {task['name']}: {task['strength']} is at least {task['at_least']:g} "
            f"({task['mean']:.1%} of training candidates)."
        )
    return f"Task {task['name']}: how much {task['strength']} is (mean {task['mean']:.3g} in training)."
