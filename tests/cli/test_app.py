"""What holds for every command: help without heavy imports, exit statuses, where messages go."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from longview.cli.app import guarded
from longview.errors import InputError, LongviewError
from longview.training import InterruptedRunError
from tests.cli.conftest import Longview

COMMANDS = [
    "demo",
    "prepare",
    "train",
    "evaluate",
    "recommend",
    "similar",
    "embed",
    "export",
    "simulate",
    "config",
    "doctor",
    "bench",
]
HEAVY = ["torch", "numpy", "pyarrow", "polars", "pydantic", "rich", "yaml"]


def test_help_lists_every_command(longview: Longview) -> None:
    result = longview("--help")
    assert result.exit_code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in result.stdout] == []


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, longview.cli.app; print([m for m in sys.argv[1:] if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, longview; print([m for m in sys.argv[1:] if m in sys.modules], longview.__version__)"
    result = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True)
    assert result.stdout.split()[0] == "[]"


def test_the_version_is_that_of_the_package(longview: Longview) -> None:
    import longview as package

    assert longview("--version").stdout == f"longview {package.__version__}\n"


def test_python_m_longview_is_the_same_program() -> None:
    result = subprocess.run([sys.executable, "-m", "longview", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("longview ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recomend"], "Did you mean 'recommend'"),
        (["recommend"], "Missing argument 'RUN'"),
        (["recommend", "run", "-k", "many"], "-k"),
        (["recommend", "nowhere", "--user", "1"], "error: nowhere: no such directory"),
        (["train", "nowhere", "--out", "x"], "error: nowhere: not a prepared data set"),
        (["evaluate", "nowhere"], "error: nowhere: no such directory"),
        (["similar", "nowhere", "--item", "1"], "error: nowhere: no such directory"),
        (["simulate", "--out", "x", "--users", "0"], "users: Input should be greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_message_on_stderr_and_status_2(
    longview: Longview, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = longview(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("problem", "status", "text"),
    [
        (InputError("rows.csv: row 3 is empty"), 2, "error: rows.csv: row 3 is empty\n"),
        (LongviewError("the disk is full"), 1, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (InterruptedRunError("stopped; go on with --resume"), 130, "stopped; go on with --resume\n"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.csv/out"), 2, "error: a.csv/out: Not a directory; "),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 2, "error: /out: Permission denied; "),
        (OSError(errno.EROFS, "Read-only", "/a/.x.png.8kq_.tmp"), 2, "error: /a: Read-only; choose a place"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device; "),
    ],
)
def test_errors_become_exit_statuses(
    problem: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise problem

    with pytest.raises(typer.Exit) as exit_:
        guarded(command)()
    assert exit_.value.exit_code == status
    printed = capsys.readouterr().err
    assert printed.startswith(text)
    assert printed.count("\n") == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor"), OSError("odd")])
def test_a_bug_is_not_dressed_up_as_an_error(bug: Exception) -> None:
    def command() -> None:
        raise bug

    with pytest.raises(type(bug)):
        guarded(command)()


def test_a_place_that_cannot_be_written_is_named(longview: Longview, tmp_path: Path) -> None:
    log, blocked = tmp_path / "log.csv", tmp_path / "file"
    log.write_text("user,item,time\na,x,1600000000\na,y,1600000001\nb,x,1600000002\n")
    blocked.touch()
    result = longview("prepare", log, "--out", blocked / "data")
    assert result.exit_code == 2
    assert f"error: {blocked}" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log.csv"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`longview … | head` ends quietly."""
    command = f"{sys.executable} -m longview config hstu-small | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout == "name: hstu-small\n"
