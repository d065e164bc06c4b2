"""`recommend` and `similar`: your ids in and out, in the form asked for, the same numbers as Python."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import longview as lv
from longview.cli.recommend import split_ids
from tests.cli.conftest import Longview, TrainedRun


def test_json_is_one_document_with_the_numbers_of_python(longview: Longview, trained: TrainedRun) -> None:
    result = longview("recommend", trained.run, "--user", "u0003", "--user", "u0001", "-k", 4, "--json")
    assert result.exit_code == 0
    table = lv.load(trained.run).recommend(users=["u0003", "u0001"], k=4)
    assert json.loads(result.stdout) == table.to_pylist()
    assert result.stderr == ""


def test_a_pipe_gets_tab_separated_values(longview: Longview, trained: TrainedRun) -> None:
    lines = longview("recommend", trained.run, "--user", "u0003", "-k", 3).stdout.splitlines()
    assert lines[0] == "user\titem\tscore\trank\ttitle"
    assert [line.split("\t")[0] for line in lines[1:]] == ["u0003"] * 3


def test_sequences_need_no_user(longview: Longview, trained: TrainedRun) -> None:
    result = longview("recommend", trained.run, "--sequence", "p0001, p0002", "--sequence", "p0003", "-k", 2, "--json")
    expected = lv.load(trained.run).recommend(sequences=[["p0001", "p0002"], ["p0003"]], k=2)
    assert json.loads(result.stdout) == expected.to_pylist()


def test_files_hold_the_table_and_stdout_stays_empty(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    files = tmp_path / "all.csv", tmp_path / "all.parquet"
    result = longview("recommend", trained.run, "--all-users", "-k", 2, "--csv", files[0], "--parquet", files[1])
    assert result.stdout == ""
    assert "240 rows written to" in result.stderr
    expected = lv.load(trained.run).recommend(k=2)
    assert pq.read_table(files[1]).equals(expected)
    assert pa_csv.read_csv(files[0])["item"].to_pylist() == expected["item"].to_pylist()


def test_lists_and_caps_come_through(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    allow, deny = tmp_path / "allow", tmp_path / "deny"
    allow.write_text("\n".join(f"p{n:04d}" for n in range(1, 41)))
    deny.write_text("p0041\n")
    shared = ["recommend", trained.run, "--sequence", "p0001", "-k", 3, "--json"]
    lists = longview(*shared, "--allow", allow, "--deny", deny, "--include-seen", "--max-per-category", 1)
    rows = json.loads(lists.stdout)
    model = lv.load(trained.run)
    category = dict(zip(model.items["id"].to_pylist(), model.items["category"].to_pylist(), strict=True))
    assert all(row["item"] <= "p0040" for row in rows)
    taken = [name for row in rows for name in category[row["item"]]]
    assert len(taken) == len(set(taken)) == len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the shop has two categories, so there are two rows
        expected = model.recommend(
            sequences=[["p0001"]], k=3, allow=allow, deny=["p0041"], include_seen=True, max_per_category=1
        )
    assert rows == expected.to_pylist()


def test_warnings_go_to_stderr_and_leave_json_alone(longview: Longview, trained: TrainedRun, tmp_path: Path) -> None:
    allow = tmp_path / "allow"
    allow.write_text("p0005\np0006\nnot-there\n")
    result = longview("recommend", trained.run, "--sequence", "p0001", "-k", 3, "--allow", allow, "--json")
    assert result.exit_code == 0
    assert {row["item"] for row in json.loads(result.stdout)} == {"p0005", "p0006"}
    assert "warning: 1 of 3 ids of the allow list are not in the catalogue" in result.stderr
    assert "warning: fewer than 3 items are left for 1 of 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --user ID"),
        (["--user", "u0001", "--all-users"], "give one of --user ID"),
        (["--user", "u001"], "unknown user 'u001' (did you mean 'u00"),
        (["--sequence", "p0001,p9999"], "unknown item 'p9999'"),
        (["--user", "u0001", "-k", "5000"], "k=5000 is outside 1 to"),
        (["--user", "u0001", "--allow", "both", "--deny", "both"], "both the allow and the deny list"),
        (["--user", "u0001", "--allow", "missing.txt"], "allow list missing.txt: cannot be read"),
        (["--user", "u0001", "--max-per-category", "1", "--category", "catgory"], "did you mean 'category'?"),
        (["--user", "u0001", "--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_bad_requests_are_explained(
    longview: Longview,
    trained: TrainedRun,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("both").write_text("p0007\n")
    result = longview("recommend", trained.run, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_similar_items_are_those_of_python(longview: Longview, trained: TrainedRun) -> None:
    result = longview("similar", trained.run, "--item", "p0001", "--item", "p0002", "-k", 3, "--json")
    assert json.loads(result.stdout) == lv.load(trained.run).similar_items(["p0001", "p0002"], k=3).to_pylist()
    assert longview("similar", trained.run, "--item", "p1").exit_code == 2


def test_ids_with_commas_quotes_and_foreign_letters_survive() -> None:
    assert split_ids('a, "b, c" ,"say ""hi""",ä') == ["a", "b, c", 'say "hi"', "ä"]
    assert split_ids("") == []
    assert isinstance(pa.array(split_ids("1,2")), pa.StringArray)


@pytest.mark.parametrize("name", ["config.json", "data.json", "items.arrow", "users.arrow", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_damaged_run_directory_names_the_file(
    longview: Longview, trained: TrainedRun, tmp_path: Path, name: str, damage: str
) -> None:
    run = shutil.copytree(trained.run, tmp_path / "run")
    file = run / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.write_text('{"hello": "world"}')
    result = longview("recommend", run, "--sequence", "p0001")
    assert result.exit_code == 2
    assert name in result.stderr
    assert "train" in result.stderr  # the remedy
