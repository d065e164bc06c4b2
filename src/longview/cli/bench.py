"""`longview bench`: every speed and memory figure the project quotes, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from longview.cli.output import emit_json, note

bench_app = typer.Typer(help="Measure speed and memory; every figure the project quotes is one of these.")

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")]


@bench_app.command("recommend")
def recommend_bench(
    run: Annotated[Path, typer.Option(help="Directory of a trained run.")],
    k: Annotated[int, typer.Option("-k", help="Items for each user.")] = 10,
    repeats: Annotated[int, typer.Option(help="Timed calls, after a first one.")] = 5,
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
) -> None:
    """Time recommending to every user of a data set, end to end."""
    from longview.bench.recommend import bench_recommend

    _deliver(bench_recommend(run, k=k, repeats=repeats, data=data, device=device), json)


def _deliver(result: dict[str, Any], file: Path | None) -> None:
    """Write the result where asked, and print it otherwise."""
    if file is None:
        emit_json(result)
        return
    from longview.files import write_json

    write_json(file, result)
    note(f"written to {file}")
