"""The results tables of the README, made from `results/*.json` and the published figures: never typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from longview.errors import InputError
from longview.evaluation.ranking_table import ranking_table
from longview.evaluation.speed_table import speed_table
from longview.evaluation.study_tables import METRIC_TABLES, render_studies
from longview.files import atomic_file

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SPEED_BEGIN, SPEED_END = "<!-- speed:begin -->", "<!-- speed:end -->"
PUBLISHED = Path(__file__).parent / "published.yaml"
REQUIRED = ("name", "dataset", "split", "fingerprint", "seeds", "mean", "std", "command")


def render_tables(results: Path, readme: Path, *, write: bool = True) -> str:
    """Return `readme` with the tables between its markers made again from `results`, and write it.

    With `write` false nothing is written: compare the return value with the file to see whether it is current.

    Raises:
        InputError: the markers are missing, or a result file is damaged, incomplete or of other data than the rest.
    """
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise InputError(f"{readme}: needs a line {BEGIN} and, after it, a line {END}, between which the tables go")
    made = _between(text, BEGIN, END, tables(load_results(results)))
    made = _between(made, SPEED_BEGIN, SPEED_END, speed_table(results, main=True))
    if write and made != text:
        _write(readme, made)
    return made


def render_speed(results: Path, page: Path, *, write: bool = True) -> str:
    """Return `page`, in a folder beside `results`, with all rows of speed and memory between its markers; write it.

    Raises:
        InputError: the markers are missing.
    """
    page = Path(page)
    text = page.read_text(encoding="utf-8")
    if SPEED_BEGIN not in text or SPEED_END not in text:
        raise InputError(f"{page}: needs a line {SPEED_BEGIN} and, after it, a line {SPEED_END}")
    made = _between(text, SPEED_BEGIN, SPEED_END, speed_table(results, link="../results"))
    if write and made != text:
        _write(page, made)
    return made


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as work:
        work.write_text(text, encoding="utf-8")


def _between(text: str, begin: str, end: str, content: str) -> str:
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    return f"{head}{begin}\n{content}\n{end}{tail}" if found and closed else text


def load_results(directory: Path) -> list[dict[str, Any]]:
    """Read the studies (`longview.evaluation.study`) of `directory`, by file name; other JSON is left alone.

    Raises:
        InputError: a file is not JSON, or a study lacks a key.
    """
    studies = []
    for path in sorted(Path(directory).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error}); run the command that writes it again") from None
        for one in value if isinstance(value, list) else [value]:  # baselines share a file
            if not isinstance(one, dict) or "seeds" not in one or "study" in one:
                continue  # a benchmark or a grid, which have tables of their own
            missing = [key for key in REQUIRED if key not in one]
            if missing:
                raise InputError(f"{path}: a study without {', '.join(missing)}; run the command that writes it again")
            studies.append({**one, "path": path.name})
    return studies


def tables(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown of all tables: one a data set that has a study, published rows included.

    A data set is known by its fingerprint, which covers its split: names are free, contents are not.

    Raises:
        InputError: studies of the same data set name and split have different fingerprints.
    """
    rankings = [ranking_table(study) for study in studies if "impressions" in study]
    studies = [study for study in studies if "impressions" not in study]
    _check(studies)
    known = {section["fingerprint"]: section for section in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))}
    found = dict.fromkeys(study["fingerprint"] for study in studies)
    parts = []
    for fingerprint in [*(f for f in known if f in found), *(f for f in found if f not in known)]:
        ours = [study for study in studies if study["fingerprint"] == fingerprint]
        unpublished = {"title": f"{ours[0]['dataset']}, {ours[0]['split']}", "rows": []}
        parts.append(_table(known.get(fingerprint, unpublished), ours))
    return "\n\n".join([*parts, *rankings]) or "_No results yet._"


def _table(section: Mapping[str, Any], studies: Sequence[Mapping[str, Any]]) -> str:
    comparable = [row for row in section["rows"] if not row.get("time")]
    told = [row for row in section["rows"] if row.get("time")]
    rows = [(row["ndcg"], _published(row)) for row in comparable] + [
        (study["mean"]["ndcg@10"], _ours(study)) for study in studies
    ]
    lines = [line for _, line in sorted(rows, key=lambda pair: pair[0])]
    lines += [_published(row) for row in told]
    note = f"Data fingerprint `{studies[0]['fingerprint']}`. Mean ± standard deviation over seeds; selected on "
    note += "validation, test read once a run. Rows in italics are published figures, not run again by us."
    if told:
        note += " Models with query time are told when the target happens, so their rows stand apart, last."
    head = "| model | HR@10 | NDCG@10 | seeds | from |\n|---|---|---|---|---|"
    return "\n".join([f"**{section['title']}**", "", head, *lines, "", note])


def _ours(study: Mapping[str, Any]) -> str:
    mean, std, count = study["mean"], study["std"], len(study["seeds"])
    baseline = bool(study.get("baseline"))
    cells = [f"{mean[name]:.4f}" + (f" ± {std[name]:.4f}" if count > 1 else "") for name in ("hr@10", "ndcg@10")]
    if not baseline:
        cells = [f"**{cell}**" for cell in cells]
    name = study["name"] if baseline else f"**{study['name']}**"
    source = f"[{study['path']}](results/{study['path']})"
    return f"| {name} | {' | '.join(cells)} | {'–' if baseline else count} | {source} |"


def _published(row: Mapping[str, Any]) -> str:
    return f"| _{row['name']}_ | {row['hr']:.4f} | {row['ndcg']:.4f} |  | published; method: {row['source']} |"


def _check(studies: Sequence[Mapping[str, Any]]) -> None:
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for study in studies:
        other = first.setdefault((study["dataset"], study["split"]), study)
        if other["fingerprint"] != study["fingerprint"]:
            found = ", ".join(f"{one['path']} {one['fingerprint']}" for one in (other, study))
            raise InputError(f"results on {study['dataset']}, {study['split']} are of different data: {found}")


if __name__ == "__main__":
    render_tables(Path("results"), Path("README.md"))
    render_speed(Path("results"), Path("docs/speed.md"))
    render_studies(Path("results"), Path("docs/studies.md"))
    render_studies(Path("results"), Path("docs/metric-learning.md"), METRIC_TABLES)
