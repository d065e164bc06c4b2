"""The errors Longview raises, and the exit status each one means on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LongviewError(Exception):
    """A run that failed. The command line prints the message, without a traceback, and exits 1."""

    exit_code = 1


class InputError(LongviewError, ValueError):
    """Bad input. The message names the file, row, key or shape, and the remedy. Exit status 2."""

    exit_code = 2


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the allowed name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
