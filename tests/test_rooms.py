"""Rooms import downwards only: a room may import from the rooms above it in the list, never below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOMS = ["ops", "data", "models", "metric_learning", "evaluation", "training", "serving", "bench", "cli"]
FOUNDATION = {"errors", "files", "config"}  # root modules every room may use; they import no room
SURFACE = {"api"}  # the Python surface: may use every room but cli
SOURCE = Path(__file__).parents[1] / "src" / "longview"


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "longview"


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "longview" else {base}
    return {name for name in names if name == "longview" or name.startswith("longview.")}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    place = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in imports(path):
        other = room_of(name)
        if place in FOUNDATION:
            assert other in FOUNDATION, f"{place} is foundation but imports {name}"
        elif place in ROOMS:
            allowed = FOUNDATION | set(ROOMS[: ROOMS.index(place) + 1])
            if place in {"bench", "cli"}:
                allowed |= SURFACE
            assert other in allowed, f"room {place} imports {name}, which is below it"


def test_every_folder_is_a_known_room() -> None:
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= set(ROOMS), folders - set(ROOMS)


def test_the_training_path_needs_no_polars() -> None:
    for room in ROOMS:
        for path in (SOURCE / room).rglob("*.py"):
            if "polars" in path.read_text(encoding="utf-8") and room != "data":
                assert "import polars" not in path.read_text(encoding="utf-8"), path
