"""`longview simulate`: a log to try things on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from longview.cli.output import note, say
from longview.errors import InputError, suggestion

KINDS = ("shop", "lifelong")


def simulate_command(
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    kind: Annotated[str, typer.Option(help="shop (a log to prepare), or lifelong (a prepared data set).")] = "shop",
    users: Annotated[int | None, typer.Option(help="Users; by default 2,000 (lifelong: 1,000).")] = None,
    items: Annotated[int | None, typer.Option(help="Items; by default 1,000 (lifelong: 4,000 and habits').")] = None,
    max_history: Annotated[
        int | None, typer.Option(help="Events of the longest history; by default 200 (lifelong: 16,384).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal logs.")] = 0,
    events_per_user: Annotated[
        int | None, typer.Option(help="lifelong: median length; by default all are the longest.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="lifelong: any rule, as key=value (repeatable).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the directory if it exists.")] = False,
) -> None:
    """Write a simulated log: users with tastes that return after long gaps, items born over time. Nothing is real.

    `lifelong` writes histories of thousands of events, directly as a prepared data set, and what the best possible
    model would predict.
    """
    if kind not in KINDS:
        raise InputError(f"--kind {kind!r}: no such simulator{suggestion(kind, KINDS)}; choose {' or '.join(KINDS)}")
    given = {"users": users, "items": items, "max_history": max_history, "events_per_user": events_per_user}
    values = {"seed": seed, **{name: value for name, value in given.items() if value is not None}}
    if kind == "lifelong":
        _lifelong(out, values, settings or [], overwrite)
    else:
        _refuse(events_per_user, settings)
        _shop(out, values, overwrite)


def _refuse(events_per_user: int | None, settings: list[str] | None) -> None:
    for option, value in (("--events-per-user", events_per_user), ("--set", settings)):
        if value:
            raise InputError(f"{option} is a setting of --kind lifelong; add that, or leave {option} out")


def _shop(out: Path, values: dict[str, Any], overwrite: bool) -> None:
    from longview.config import parse
    from longview.data.simulator import SimulationConfig, simulate, write_simulation

    config = parse(SimulationConfig, values, "longview simulate")
    log = simulate(config)
    write_simulation(log, out, overwrite=overwrite)
    say(
        f"Simulated {log.events.num_rows:,} events of {config.users:,} users on {config.items:,} items "
        f"(seed {config.seed}); nothing of it is real.\nWritten to {out}. Next:\n"
        f"  longview prepare {out}/events.parquet --items {out}/items.csv --out DATA"
    )


def _lifelong(out: Path, values: dict[str, Any], settings: list[str], overwrite: bool) -> None:
    from longview.config import override, parse
    from longview.data.simulator.lifelong import LifelongConfig, write_lifelong
    from longview.data.simulator.oracle import oracle_metrics

    config = parse(LifelongConfig, override(values, settings), "longview simulate --kind lifelong")
    data = write_lifelong(config, out, overwrite=overwrite, progress=_reporter())
    say(
        f"Simulated {data.num_events:,} events of {data.num_users:,} users on {data.num_items:,} items "
        f"(seed {config.seed}); nothing of it is real.\nWritten to {out}, a prepared data set."
    )
    _say_bounds(oracle_metrics(out, "all"), config.oracle_events)
    say(f"Next:\n  longview train {out} --out RUN")


def _reporter() -> Callable[[int, int], None]:
    """Return what notes the progress, ten times at most."""
    noted = 0

    def report(done: int, users: int) -> None:
        nonlocal noted
        if done * 10 // users > noted:
            noted = done * 10 // users
            note(f"{done:,} of {users:,} users")

    return report


def _say_bounds(found: dict[str, Any], newest: int) -> None:
    """Say what the best possible model reaches on the described events, by how much of the history it sees."""
    say(
        f"The best possible on the newest {newest} events of each user ({found['events']:,} targets, ranked among all "
        "items, seen ones kept in):"
    )
    say("  history seen   HR@10  NDCG@10  NE of clicks")
    for name, row in found["windows"].items():
        seen = "all" if name == "all" else f"newest {int(name):,}"
        say(f"  {seen:<13} {row['hr@10']:.4f}   {row['ndcg@10']:.4f}        {row['ne_click']:.4f}")
