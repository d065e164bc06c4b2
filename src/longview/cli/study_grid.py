"""What `longview study` does with every grid: train as far as the time goes, then write, draw and say what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from longview.cli.output import note, say


@dataclass(frozen=True)
class Runs:
    """What a study is run with, whichever kind it is."""

    data: Path | None
    json: Path
    out: Path | None
    seeds: list[int] | None
    settings: list[str]
    device: str
    parallel: int
    tables: tuple[str, ...]
    command: str


class Grid(NamedTuple):
    """A kind of grid. `study` is what was read of its file; the others are as `run_cells` and `summary` take it."""

    study: Any
    train: Callable[..., Any]
    summarise: Callable[..., dict[str, Any]]
    draw: Callable[[Path, dict[str, Any]], Sequence[Path]]  # the JSON's path and the result → the pictures
    tell: Callable[[dict[str, Any]], None]


def run_grid(grid: Grid, runs: Runs, max_minutes: float | None, draw: bool) -> None:
    """Train the cells that are not there yet, unless `draw`, and write and draw what is there."""
    from longview.errors import InputError
    from longview.files import write_json

    if runs.out is None:
        raise InputError("a study needs --out, the directory of its cells; the same one goes on with it")
    if not draw:
        done = grid.train(
            grid.study, runs.out, device=runs.device, parallel=runs.parallel, max_minutes=max_minutes, data=runs.data,
            note=note,
        )  # fmt: skip
        if done.stopped is not None:
            note(f"stopped ({done.stopped}) with {done.done} of {done.cells} cells; the same command goes on")
        if not done.done:
            return
    result = grid.summarise(grid.study, runs.out, command=runs.command)
    write_json(runs.json, result)
    pictures = grid.draw(runs.json, result)
    grid.tell(result)
    drawn = " and ".join(map(str, [runs.json, *pictures]))
    say(f"Written to {drawn}" + ("" if pictures else "; a picture needs matplotlib (longview[plots])"))
