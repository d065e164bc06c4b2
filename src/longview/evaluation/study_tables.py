"""The tables of studies in the documentation, made from `results/`: never typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.errors import InputError
from longview.evaluation.markdown import table
from longview.evaluation.metric_tables import metric_table
from longview.files import atomic_file

TABLES = ("study-scaling", "study-ablation")  # of docs/studies.md
METRIC_TABLES = ("omniglot-default", "omniglot-batches", "omniglot", "omniglot-regimes")  # of docs/metric-learning.md
AXES = {
    "training_flops": "operations of training",
    "request_flops": "operations of a request",
    "training_seconds": "seconds of training",
    "request_seconds": "seconds of a request",
}


def render_studies(results: Path, page: Path, names: Sequence[str] = TABLES, *, write: bool = True) -> str:
    """Return `page`, in a folder beside `results`, with picture and tables of each study between its markers; write it.

    A study is `NAME.json` in `results`, its markers are `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        InputError: a marker is missing.
    """
    page = Path(page)
    before = made = page.read_text(encoding="utf-8")
    for name in names:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, found, rest = made.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            raise InputError(f"{page}: needs a line {begin} and, after it, a line {end}, between which its tables go")
        made = f"{head}{begin}\n{_content(Path(results), name)}\n{end}{tail}"
    if write and made != before:
        with atomic_file(page) as work:
            work.write_text(made, encoding="utf-8")
    return made


def _content(results: Path, name: str) -> str:
    """Return picture and tables of a study, for a page in a folder beside `results`."""
    file = results / f"{name}.json"
    if not file.exists():
        return "_Not run yet._"
    result = json.loads(file.read_text(encoding="utf-8"))
    picture = f"![{name}](../{results.name}/{name}.png)\n\n" if file.with_suffix(".png").exists() else ""
    return picture + study_table(result)


def study_table(result: Mapping[str, Any]) -> str:
    """Return the Markdown of the result of `longview study ablation`, `scaling` or `metric-learning`."""
    if result["study"] == "metric-learning":
        return metric_table(result)
    parts = [_ablation(result)] if result["study"] == "ablation" else _scaling(result)
    return "\n\n".join([_about(result), *parts])


def _about(result: Mapping[str, Any]) -> str:
    data, best = result["data"], result["best_possible"]
    kind = "simulated" if data["simulated"] else "real"
    words = [
        f"{data['name']} ({kind}): {data['events']:,} events of {data['users']:,} users on {data['items']:,} items, "
        f"fingerprint `{data['fingerprint']}`. Quality is {_metric(result)} on one test target a user"
        + ("" if data["exclude_seen"] else ", among all items, those seen before included")
        + f"; seeds: {len(result['config']['seeds'])}."
    ]
    if best:
        seen = ", ".join(
            f"{best[w]:.4f} seeing {int(w):,} events" for w in sorted((w for w in best if w != "all"), key=int)
        )
        words.append(f"The best possible is {best['all']:.4f}" + (f" ({seen})." if seen else "."))
    if not result["complete"]:
        words.append(f"**{result['missing_cells']} runs are missing.**")
    words.append(f"Times: {'; '.join(result['measured_on']) or 'not measured'}. Made by `{result['command']}`.")
    return " ".join(words)


def _metric(result: Mapping[str, Any]) -> str:
    return str(result["metric"]).upper()


def _scaling(result: Mapping[str, Any]) -> list[str]:
    parts = [_points(result)]
    if result["ratios"] is not None:
        parts += [_point_ratios(result), _fits(result), _kept(result)]
    return [*parts, _longer(result)]


def _points(result: Mapping[str, Any]) -> str:
    rows = [
        [
            point["arm"], f"{point['length']:,}", str(point["depth"]),
            f"{point['quality']:.4f} ({_ends(point['interval'], '.4f')})",
            f"{point['flops']['training']:.2e}", f"{point['flops']['request']:.2e}",
            *(_milliseconds(point["seconds"], name) for name in ("step", "request")),
        ]
        for point in result["points"]
    ]  # fmt: skip
    heads = ["model", "events", "layers", f"{_metric(result)}, 95 % interval", "operations of training", "of a request",
             "a step, ms", "a request, ms"]  # fmt: skip
    return table(heads, rows)


def _point_ratios(result: Mapping[str, Any]) -> str:
    ratios = result["ratios"]
    rows = [
        [f"{row['length']:,}", str(row["depth"]), *(_times(row[axis]) for axis in AXES), _share(row, "quality_share")]
        for row in ratios["point_ratios"]
    ]
    first, second = ratios["first"], ratios["second"]
    said = (
        f"Point ratios: what {first} costs over {second} at one length and depth, and the quality that {second} keeps."
    )
    return f"{said}\n\n" + table(["events", "layers", *AXES.values(), f"quality of {second} / {first}"], rows)


def _fits(result: Mapping[str, Any]) -> str:
    ratios, fits = result["ratios"], result["fits"]
    first, second = ratios["first"], ratios["second"]
    rows = []
    for axis, words in AXES.items():
        slopes = [fits[arm][axis]["all"] for arm in (first, second)]
        if any(fit is None for fit in slopes):
            continue
        by_depth = [ratios["slope_ratio_by_depth"][depth][axis] for depth in ratios["slope_ratio_by_depth"]]
        rows.append([
            words, *(f"{fit['slope']:.4f} ({_ends(fit['slope_interval'], '.4f')})" for fit in slopes),
            _ratio(ratios["slope_ratio"][axis]), _ratio(ratios["exponent_ratio"][axis]),
            "; ".join(_ratio(found, ends=False) for found in by_depth),
        ])  # fmt: skip
    depths = ", ".join(ratios["slope_ratio_by_depth"])
    said = "Slopes: points of quality for ten times the compute, over all lengths and depths. "
    said += f"Ratios are {second} over {first}."
    heads = ["compute", f"slope of {first}", f"slope of {second}", "slope ratio", "exponent ratio",
             f"slope ratio over lengths alone, at {depths} layers"]  # fmt: skip
    return f"{said}\n\n" + table(heads, rows)


def _kept(result: Mapping[str, Any]) -> str:
    ratios = result["ratios"]
    kept = ratios["kept_at_longest"]
    if kept is None or kept["share"] is None:
        return ""
    return (
        f"At {kept['length']:,} events {ratios['second']} keeps {kept['share']:.1%} of the quality of "
        f"{ratios['first']} over all depths, 95 % interval {_ends(kept['interval'], '.1%')}."
    )


def _longer(result: Mapping[str, Any]) -> str:
    rows = [
        [
            arm, "all" if row["depth"] is None else str(row["depth"]), f"{row['from']:,}", f"{row['to']:,}",
            f"{row['difference']:+.4f} ({_ends(row['interval'], '+.4f')})",
        ]
        for arm, found in result["longer_histories"].items()
        for row in found
    ]  # fmt: skip
    said = "What the longest histories are worth over the shortest."
    return f"{said}\n\n" + table(
        ["model", "layers", "from events", "to events", f"{_metric(result)}, 95 % interval"], rows
    )


def _ablation(result: Mapping[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        if row["part"] == row["variant"]:
            rows.append([f"**{row['part']}**", "", f"**{row['quality']:.4f}** ± {row['std']:.4f}", *[""] * 4])
            continue
        costs = row.get("relative", {})
        same = row.get("is_reference", False)
        worth = "reference" if same else f"{row['difference']:+.4f} ({_ends(row['difference_interval'], '+.4f')})"
        found = [costs.get(group, {}).get(name) for group in ("flops", "seconds") for name in ("training", "request")]
        rows.append([row["part"], row["variant"], worth, *("" if same else _times(value) for value in found)])
    heads = ["part", "variant", f"{_metric(result)}, less the reference's (95 % interval)", "operations of training",
             "of a request", "seconds of training", "of a request"]  # fmt: skip
    return table(heads, rows)


def _milliseconds(seconds: Mapping[str, float] | None, name: str) -> str:
    return "–" if seconds is None else f"{1e3 * seconds[name]:.3g}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _share(row: Mapping[str, Any], name: str) -> str:
    return "–" if row[name] is None else f"{row[name]:.1%} ({_ends(row[f'{name}_interval'], '.1%')})"


def _ratio(found: Mapping[str, Any] | None, *, ends: bool = True) -> str:
    if found is None or found["ratio"] is None:
        return "none"
    return f"{found['ratio']:.2f}" + (f" ({_ends(found['interval'], '.2f')})" if ends else "")


def _ends(interval: Sequence[float | None], form: str) -> str:
    low, high = interval
    return "no interval" if low is None or high is None else f"{low:{form}} to {high:{form}}"
