"""The result card of a run: `result.json` for programs, `card.md` and `curves.png` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from longview.evaluation.curves import draw_curves
from longview.evaluation.markdown import table
from longview.evaluation.ranking_card import beaten_by, headline, is_ranking
from longview.evaluation.ranking_card import sections as ranking_sections
from longview.evaluation.ranking_curves import draw_ranking
from longview.files import atomic_file, write_json

COLUMNS = {
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "coverage@10": "coverage",
    "novelty@10": "novelty (bits)",
    "popular_share@10": "popular",
    "new_share@10": "new",
}
WITH_INTERVAL = ("hr@10", "ndcg@10")


def write_card(directory: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`, `card.md` and, where matplotlib is installed, `curves.png` into `directory`.

    Each file is written atomically, `result.json` first. `result` has `name`, `seed`, `test` (a report as
    `Report.to_dict` makes it) and may have `validation`, `baselines` (reports), `skipped` (baseline to reason),
    `history` (one mapping an epoch: `epoch`, `loss`, metrics), `best_epoch`, `epochs`, `stopped`, `seconds`,
    `selected_by`, `data`, `config`, `environment`, `command`, `notes`, and `further` (`test`, `validation`, `baselines`
    of what else the model was trained for); what is absent is left out of the card. A report of ranking is one that
    `ImpressionReport.to_dict` made; where it is further, its picture is `ranking.png`.
    """
    directory = Path(directory)
    write_json(directory / "result.json", result)
    if is_ranking(result["test"]):
        drawn = draw_ranking(directory / "curves.png", result, result)
    else:
        drawn = draw_curves(directory / "curves.png", result)
    for outcome in _rankings(result):
        draw_ranking(directory / "ranking.png", {**result, "history": []}, outcome)
    with atomic_file(directory / "card.md") as work:
        work.write_text(render_card(result, drawn=drawn), encoding="utf-8")


def render_card(result: Mapping[str, Any], *, drawn: bool) -> str:
    """Return the card as Markdown; `drawn` says whether there is a `curves.png` to show."""
    ranks = is_ranking(result["test"])
    picture = (
        f"![{'Loss, baselines and reliability' if ranks else 'Loss, metrics and groups'}](curves.png)"
        if drawn
        else "No picture: matplotlib is not installed (`pip install 'longview[plots]'`)."
    )
    further = _rankings(result)
    if further and drawn:
        picture += "\n\n![Ranking: baselines and reliability](ranking.png)"
    main = ranking_sections(result) if ranks else [_comparison(result), _groups(result), _protocol(result["test"])]
    sections = [
        f"# {result['name']} on {result['test']['data']}",
        " ".join([_summary(result), *(headline(outcome["test"]) + beaten_by(outcome) for outcome in further)]),
        picture,
        *main,
        *(section for outcome in further for section in ranking_sections(outcome)),
        _data(result),
        _settings(result),
        _circumstances(result),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _rankings(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what else the model was trained for that is ranking."""
    return [outcome for outcome in result.get("further", []) if is_ranking(outcome["test"])]


def _summary(result: Mapping[str, Any]) -> str:
    test, metrics = result["test"], result["test"]["metrics"]
    if is_ranking(test):
        return " ".join([headline(test), *_training(result)]) + beaten_by(result)
    parts = [
        f"**HR@10 {_figure(test, 'hr@10')}, NDCG@10 {_figure(test, 'ndcg@10')}** on {test['split']}, "
        f"{test['num_users']:,} users, {test['num_items']:,} items."
    ]
    validation = result.get("validation")
    if validation:
        parts.append(f"Validation: NDCG@10 {validation['metrics']['ndcg@10']:.4f}.")
    parts += _training(result)
    best = max(result.get("baselines", []), key=lambda r: r["metrics"]["ndcg@10"], default=None)
    if best is not None and best["metrics"]["ndcg@10"] > metrics["ndcg@10"]:
        parts.append(f"**The baseline {best['name']} is better than this model.**")
    return " ".join(parts)


def _training(result: Mapping[str, Any]) -> list[str]:
    parts = []
    if "epochs" in result:
        why = {"patience": "no better epoch came", "epochs": "all epochs done", "max_minutes": "time was up"}
        stopped = why.get(result.get("stopped") or "", result.get("stopped") or "")
        parts.append(
            f"Weights of epoch {result.get('best_epoch', result['epochs'])} of {result['epochs']}"
            + (f" ({stopped})" if stopped else "")
            + (f", selected by {result['selected_by']}" if "selected_by" in result else "")
            + (f", in {_duration(result['seconds'])}." if "seconds" in result else ".")
        )
    return parts


def _comparison(result: Mapping[str, Any]) -> str:
    reports = sorted(
        [result["test"], *result.get("baselines", [])], key=lambda r: r["metrics"]["ndcg@10"], reverse=True
    )
    columns = [c for c in COLUMNS if any(c in r["metrics"] for r in reports)]
    rows = []
    for report in reports:
        name = f"**{report['name']}**" if report is result["test"] else report["name"]
        rows.append([name, *(_figure(report, column) for column in columns)])
    text = f"## Beside the baselines, on {result['test']['split']}\n\n"
    text += table(["model", *(COLUMNS[c] for c in columns)], rows)
    text += (
        "\n\nIn brackets: 95 % bootstrap intervals over users. Coverage is the share of the catalogue in any top 10, "
        "novelty the mean information of a recommended item, popular the share of places taken by the most popular "
        "1 % of items, new by items first seen in the last 30 days of training or never."
    )
    skipped = "".join(f"\n- {name} was skipped: {reason}" for name, reason in result.get("skipped", {}).items())
    return text + (f"\n{skipped}" if skipped else "")


def _groups(result: Mapping[str, Any]) -> str:
    groups: Sequence[Mapping[str, Any]] = result["test"].get("groups", [])
    if not groups:
        return ""
    rows = [
        [
            f"{g['from']:,} or more" if g["to"] is None else f"{g['from']:,} to {g['to']:,}",
            f"{g['users']:,}",
            f"{g['hr@10']:.4f}",
            f"{g['ndcg@10']:.4f}",
        ]
        for g in groups
    ]
    return "## By length of history\n\n" + table(["events before the target", "users", "HR@10", "NDCG@10"], rows)


def _protocol(test: Mapping[str, Any]) -> str:
    return (
        f"## Protocol\n\n{test['protocol'][0].upper()}{test['protocol'][1:]}.\n\n"
        f"- Fingerprint `{test['fingerprint']}`: results compare only where it is the same.\n"
        f"- {test['cold_share']:.1%} of targets have no training event."
    )


def _data(result: Mapping[str, Any]) -> str:
    said = ("schema_version", "fingerprint")  # of no use to people, and under "Protocol"
    facts = {k: v for k, v in result.get("data", {}).items() if isinstance(v, str | int | float) and k not in said}
    if not facts:
        return ""
    lines = [f"- {key.removeprefix('num_')}: {_plain(value)}" for key, value in facts.items() if key != "simulated"]
    if facts.get("simulated"):
        lines.insert(0, "**Simulated data: figures on it say nothing about real recommendations.**\n")
    return "## Data\n\n" + "\n".join(lines)


def _settings(result: Mapping[str, Any]) -> str:
    if not result.get("config"):
        return ""
    text = yaml.safe_dump(result["config"], sort_keys=False, allow_unicode=True).rstrip()
    return f"## Settings\n\n```yaml\n{text}\n```"


def _circumstances(result: Mapping[str, Any]) -> str:
    facts = {"seed": result.get("seed"), "command": result.get("command"), **result.get("environment", {})}
    lines = [f"- {key}: {_plain(value)}" for key, value in facts.items() if value is not None]
    lines += [f"- note: {note}" for note in result.get("notes", [])]
    return "## Seed, versions, hardware\n\n" + "\n".join(lines)


def _figure(report: Mapping[str, Any], name: str) -> str:
    value = report["metrics"].get(name)
    if value is None:
        return "–"
    if name.startswith("novelty"):
        return f"{value:.1f}"
    if name.startswith(("coverage", "popular", "new")):
        return f"{value:.1%}"
    interval = report.get("intervals", {}).get(name) if name in WITH_INTERVAL else None
    return f"{value:.4f}" + (f" ({interval[0]:.4f}–{interval[1]:.4f})" if interval else "")


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
