"""Results as files: what is measured so far, with the command that measures it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longview.files import write_json

PRIVATE = {"--peer-python": "PYTHON", "--peer-checkout": "DIR"}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write `result` to `path`, whole or not at all; an interrupted benchmark leaves what it had, command included."""
    write_json(path, {**result, "command": command_line(sys.argv[1:])})


def command_line(words: Sequence[str]) -> str:
    """Return the `longview` command of `words`; where somebody keeps files is nobody's business."""
    hidden = [PRIVATE.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    hidden = [Path(word).name if word.startswith("/") else word for word in hidden]
    return " ".join(["longview", *hidden])
