"""The tables of the README are made, not typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longview.errors import InputError
from longview.evaluation.tables import BEGIN, END, load_results, render_tables, tables

ML_1M = "565da6528352045d"
README = f"# Title\n\n{BEGIN}\nstale\n{END}\n\nAfter.\n"


def study(name: str, hr: float, *, seeds: int = 3, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": "ml-1m",
        "split": "leave-last-out",
        "fingerprint": ML_1M,
        "seeds": [{"seed": s} for s in range(seeds)],
        "mean": {"hr@10": hr, "ndcg@10": hr * 0.6},
        "std": {"hr@10": 0.003, "ndcg@10": 0.002},
        "command": f"make {name}",
    } | changes


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for value in (study("ours", 0.36), study("ease", 0.11, seeds=1, baseline=True)):
        (folder / f"{value['name']}.json").write_text(json.dumps(value))
    (folder / "bench.json").write_text('{"seconds": 1}')
    return folder


def test_ours_stand_among_the_published_in_order_of_ndcg(results: Path) -> None:
    lines = tables(load_results(results)).splitlines()
    rows = [line for line in lines if line.startswith("|") and "NDCG" not in line and "---" not in line]
    assert "ease | 0.1100 | 0.0660 | – |" in rows[0]
    assert "**ours** | **0.3600 ± 0.0030** | **0.2160 ± 0.0020** | 3 |" in next(r for r in rows if "ours" in r)
    comparable = [float(r.split("|")[3].strip(" *").split(" ")[0]) for r in rows if "query time" not in r]
    assert comparable == sorted(comparable)
    assert all("query time" in r for r in rows[len(comparable) :]), "rows that know more stand last"
    assert any("gSASRec" in r and "0.3003" in r for r in rows)
    assert f"`{ML_1M}`" in lines[-1]


def test_only_the_part_between_the_markers_changes_and_only_once(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    made = render_tables(results, readme)
    assert readme.read_text() == made
    assert made.startswith("# Title\n")
    assert made.endswith("\n\nAfter.\n")
    assert "stale" not in made
    assert "[ours.json](results/ours.json)" in made
    assert render_tables(results, readme) == made


def test_a_check_writes_nothing(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert render_tables(results, readme, write=False) != README
    assert readme.read_text() == README


def test_no_results_yet(tmp_path: Path) -> None:
    assert tables(load_results(tmp_path)) == "_No results yet._"


def test_a_data_set_without_published_rows_has_a_table_too() -> None:
    made = tables([study("ours", 0.2, dataset="shop", fingerprint="f0", path="shop.json")])
    assert "**shop, leave-last-out**" in made
    assert "gSASRec" not in made


def test_problems_are_named(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(InputError, match="results:begin"):
        render_tables(results, readme)
    (results / "other.json").write_text(json.dumps(study("other", 0.3, fingerprint="f1")))
    with pytest.raises(InputError, match=r"different data: .*other\.json f1"):
        tables(load_results(results))
    (results / "other.json").write_text(json.dumps({"seeds": []}))
    with pytest.raises(InputError, match=r"other\.json: a study without name"):
        load_results(results)
    (results / "other.json").write_text("{")
    with pytest.raises(InputError, match=r"other\.json: not valid JSON"):
        load_results(results)
