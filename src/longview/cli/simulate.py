"""`longview simulate`: a log to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.output import say


def simulate_command(
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 2_000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 1_000,
    max_history: Annotated[int, typer.Option(help="Events of the longest history.")] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal logs.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the directory if it exists.")] = False,
) -> None:
    """Write a simulated log: users with tastes that return after long gaps, items born over time. Nothing is real."""
    from longview.config import parse
    from longview.data.simulator import SimulationConfig, simulate, write_simulation

    values = {"users": users, "items": items, "max_history": max_history, "seed": seed}
    log = simulate(parse(SimulationConfig, values, "longview simulate"))
    write_simulation(log, out, overwrite=overwrite)
    say(
        f"Simulated {log.events.num_rows:,} events of {users:,} users on {items:,} items (seed {seed}); "
        f"nothing of it is real.\nWritten to {out}. Next:\n"
        f"  longview prepare {out}/events.parquet --items {out}/items.csv --out DATA"
    )
