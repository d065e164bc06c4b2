"""What the README promises: its tables come from `results/`, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longview.cli.app import app
from longview.evaluation.study_tables import METRIC_TABLES, render_studies
from longview.evaluation.tables import load_results, render_speed, render_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_are_those_of_the_results() -> None:
    current = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_tables(ROOT / "results", ROOT / "README.md", write=False) == current, "run `make tables`"
    page = ROOT / "docs" / "speed.md"
    assert render_speed(ROOT / "results", page, write=False) == page.read_text(encoding="utf-8"), "run `make tables`"
    page = ROOT / "docs" / "studies.md"
    assert render_studies(ROOT / "results", page, write=False) == page.read_text(encoding="utf-8"), "run `make tables`"
    page = ROOT / "docs" / "metric-learning.md"
    made = render_studies(ROOT / "results", page, METRIC_TABLES, write=False)
    assert made == page.read_text(encoding="utf-8"), "run `make tables`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ *(longview (?:bench )?\w[^#\n`]*)", text, re.MULTILINE):
        words = line.split()[1:]
        name = words[:2] if words[0] == "bench" else words[:1]
        shown = CliRunner().invoke(app, [*name, "--help"])
        assert shown.exit_code == 0, line
        for option in re.findall(r"(?<= )--[a-z-]+", line):
            assert option in shown.stdout, f"{option} in: {line}"


def test_every_result_names_its_command_and_no_machine() -> None:
    for path in sorted((ROOT / "results").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert '"command"' in text, path.name
        assert not re.search(r"/(?:home|root|tmp|work|usr)/", text), f"{path.name} holds a path of a machine"


def test_quality_results_have_three_seeds_of_one_configuration_in_configs() -> None:
    for study in load_results(ROOT / "results"):
        if study.get("baseline") or study["path"].endswith("-cpu.json"):
            continue
        assert len(study["seeds"]) >= 3, study["path"]
        assert re.search(r"configs/\S+\.yaml", study["command"]), study["path"]
        assert (ROOT / re.search(r"configs/\S+\.yaml", study["command"])[0]).exists()  # type: ignore[index]


def test_the_bars_are_met_by_the_results() -> None:
    """The figures the project stands for; a result below one may not be committed in its place."""
    bars = {"quality-ml-1m": (0.340, 0.202), "quality-beauty-global-time": (0.042, 0.0243)}
    bars |= {"quality-beauty-leave-last-out": (0.100, 0.060)}
    for name, (hr, ndcg) in bars.items():
        mean = json.loads((ROOT / "results" / f"{name}.json").read_text())["mean"]
        assert mean["hr@10"] >= hr
        assert mean["ndcg@10"] >= ndcg
