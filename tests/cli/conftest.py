"""The command line as a function: arguments in, status and both streams out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from longview.cli.app import app
from tests.trained_run import TrainedRun, trained

__all__ = ["TrainedRun", "trained"]

Longview = Callable[..., Any]


@pytest.fixture(scope="session")
def longview() -> Longview:
    """Run `longview ARGUMENTS…`; the result has `exit_code`, `stdout` and `stderr`. Bugs come out as exceptions."""

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run
