"""What a benchmark wrote, beside what it returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_written(path: Path) -> dict[str, Any]:
    """Return the result in `path` without the command, which is there, too."""
    found: dict[str, Any] = json.loads(path.read_text())
    assert found.pop("command").startswith("longview")
    return found
