"""The tables of studies: made from their results, between markers, and nothing typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longview.errors import InputError
from longview.evaluation.ablation import ablation_summary
from longview.evaluation.scaling import scaling_summary
from longview.evaluation.study_tables import TABLES, render_studies, study_table
from tests.evaluation.test_scaling import finished, points, record


def result(kind: str, summary: dict[str, Any]) -> dict[str, Any]:
    values = finished(kind, summary)
    values["data"] |= {"events": 10, "items": 5, "fingerprint": "f00", "exclude_seen": False}
    return {**values, "config": {"seeds": [0, 1]}, "command": "longview study " + kind}


SCALING = result("scaling", scaling_summary("hr@10", points({"HSTU": 0.05, "ULTRA": 0.1}), None, ("HSTU", "ULTRA")))


def page(folder: Path) -> Path:
    file = folder / "studies.md"
    file.write_text("".join(f"# {name}\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n" for name in TABLES))
    return file


def test_a_study_that_ran_is_a_table_and_others_say_so(tmp_path: Path) -> None:
    (tmp_path / "study-scaling.json").write_text(json.dumps(SCALING))
    text = render_studies(tmp_path, page(tmp_path))
    assert text == (tmp_path / "studies.md").read_text()
    assert text.count("_Not run yet._") == len(TABLES) - 1
    assert "old" not in text
    assert "keeps 122.3% of the quality of HSTU" in text
    assert "| HSTU | 16,384 | 2 |" in text
    assert render_studies(tmp_path, tmp_path / "studies.md", write=False) == text


def test_a_page_without_a_marker_is_refused(tmp_path: Path) -> None:
    (tmp_path / "studies.md").write_text("<!-- study-scaling:begin -->")
    with pytest.raises(InputError, match="needs a line <!-- study-scaling:begin -->"):
        render_studies(tmp_path, tmp_path / "studies.md")


def test_scaling_has_points_ratios_slopes_and_what_length_is_worth() -> None:
    text = study_table(SCALING)
    assert "| seconds of a request | 0.05" in text
    assert "| 1,024 | 1 | 10.00× | 10.00× | 10.00× | 10.00× |" in text
    assert "| ULTRA | all | 1,024 | 16,384 | +0.1000" in text
    assert "**2 runs are missing.**" in text


def test_times_that_were_not_measured_are_dashes() -> None:
    untimed = [(labels, {**one, "seconds": None}) for labels, one in points({"HSTU": 0.1, "ULTRA": 0.1})]
    summary = scaling_summary("hr@10", untimed, None, ("HSTU", "ULTRA"))
    text = study_table({**result("scaling", summary), "measured_on": []})
    assert "Times: not measured." in text
    assert "| 1,024 | 1 | 10.00× | 10.00× | – | – |" in text
    assert "| seconds of training |" not in text.split("Slopes")[1]


def test_an_ablation_has_a_row_a_variant() -> None:
    rows = [("reference", "reference"), ("mask", "recent"), ("mask", "prefix")]
    base = record(0.2, 1e6, 0)
    records = [base, record(0.3, 2e6, 0), base]
    known = [({"part": p, "variant": v}, one) for (p, v), one in zip(rows, records, strict=True)]
    text = study_table(result("ablation", ablation_summary("hr@10", known, None)))
    assert "| **reference** |  | **0.2000** ± 0.0000 |" in text
    assert "| mask | recent | +0.1000 (" in text
    assert "| 2.00× | 2.00× | 2.00× | 2.00× |" in text
    assert "| mask | prefix | reference |" in text
