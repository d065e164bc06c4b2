"""`longview simulate --kind lifelong` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from longview.cli.app import app
from longview.data import PreparedData
from longview.data.simulator import LifelongConfig, Oracle, oracle_metrics, write_lifelong

BANDS = "bands=[{distance: 64, share: 0.2}]"
SMALL = ["--users", "20", "--items", "60", "--max-history", "400", "--set", BANDS, "--set", "windows=[64]"]


def simulate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_the_command_writes_what_the_function_writes(tmp_path: Path) -> None:
    result = simulate("--kind", "lifelong", "--out", tmp_path / "a", *SMALL, "--seed", 7, "--events-per-user", 200)
    assert result.exit_code == 0, result.output
    assert "nothing of it is real" in result.output
    assert "20 of 20 users" in result.stderr
    rules = {"users": 20, "items": 60, "max_history": 400, "seed": 7, "events_per_user": 200, "windows": (64,)}
    config = LifelongConfig(**rules, bands=({"distance": 64, "share": 0.2},))
    again = write_lifelong(config, tmp_path / "b")
    assert PreparedData.open(tmp_path / "a").fingerprint == again.fingerprint
    assert Oracle.open(tmp_path / "a").table.equals(Oracle.open(tmp_path / "b").table)
    for row in oracle_metrics(tmp_path / "a", "all")["windows"].values():
        assert f"{row['hr@10']:.4f}   {row['ndcg@10']:.4f}" in result.output


def test_nothing_is_written_over_unless_asked(tmp_path: Path) -> None:
    arguments = ("--kind", "lifelong", "--out", tmp_path / "a", *SMALL)
    assert simulate(*arguments).exit_code == 0
    refused = simulate(*arguments)
    assert refused.exit_code == 2
    assert "already exists" in refused.stderr
    assert simulate(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "lifelng"], "did you mean 'lifelong'?"),
        (["--kind", "lifelong", "--users", "-1"], "users: Input should be greater than or equal to 1"),
        (["--kind", "lifelong", "--max-history", "2000"], "set max_history to 8,192 or more"),
        (["--kind", "lifelong", "--events-per-user", "-5"], "events_per_user: Input should be"),
        (["--kind", "lifelong", "--set", "season=0.1"], "unknown key 'season' (did you mean 'seasons'?)"),
        (["--set", "markov=0.1"], "--set is a setting of --kind lifelong"),
        (["--events-per-user", "9"], "--events-per-user is a setting of --kind lifelong"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = simulate("--out", tmp_path / "a", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
