"""`longview demo`: the whole way from a log to recommendations, on a simulated one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.output import emit_table, say
from longview.errors import InputError

if TYPE_CHECKING:
    from longview.data.dataset import PreparedData
    from longview.serving.recommender import Recommender

PARTS = ("log", "data", "run")
MARK = "# A simulated log"
SHOP = {"users": 1_500, "items": 600, "max_history": 120}
# A small shop needs small batches to get enough steps; the time limit is for machines busy with something else.
SETTINGS = (
    "model.max_length=100",
    "batches.batch_size=32",
    "optimiser.rate=0.003",
    "loop.epochs=8",
    "loop.max_minutes=1.5",
)
SHOWN = 8  # items of a history and of a list


def demo_command(
    out: Annotated[Path, typer.Option(help="Directory to write; a demo already there is replaced.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Another seed simulates another shop.")] = 0,
) -> None:
    """Simulate a shop, prepare its log, train, evaluate beside baselines and recommend, in a minute or two."""
    _make_room(out)
    begin = time.monotonic()
    say("Everything below is SIMULATED: users, items and events come from a random number generator.\n")
    _simulate(out / "log", seed)
    data = _prepare(out)
    _train(out, data)
    _recommend(out, data)
    say(f"\nDone in {time.monotonic() - begin:.0f} s. What you saw was simulated; now with your own log:\n")
    say("  longview prepare events.csv --items items.csv --out data    # finds the columns and says which")
    say("  longview train data --out run                               # Ctrl-C is safe: --resume goes on")
    say("  longview recommend run --user ID")


def _make_room(out: Path) -> None:
    """Remove the parts of an earlier demo, and nothing that is not one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        readme = out / "log" / "README.md"
        if not readme.is_file() or not readme.read_text(encoding="utf-8").startswith(MARK):
            raise InputError(f"{out} exists and is not an earlier demo: choose another directory with --out")
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)


def _simulate(log: Path, seed: int) -> None:
    from longview.config import parse
    from longview.data.simulator import SimulationConfig, simulate, write_simulation

    simulation = simulate(parse(SimulationConfig, {**SHOP, "seed": seed}, "--seed"))
    write_simulation(simulation, log)
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SHOP.items())
    _step(
        f"longview simulate --out {log} {options} --seed {seed}",
        f"{simulation.events.num_rows:,} events of {simulation.users.num_rows:,} users "
        f"on {simulation.items.num_rows:,} items, in {log}",
    )


def _prepare(out: Path) -> PreparedData:
    from longview.data.prepare import prepare

    log = out / "log"
    data = prepare(
        log / "events.parquet", out=out / "data", items=log / "items.csv", name="simulated shop", simulated=True
    )
    _step(
        f"longview prepare {log}/events.parquet --items {log}/items.csv --out {out}/data --name 'simulated shop'",
        f"{data.num_events:,} events; what is in them: {out}/data/card.md",
    )
    return data


def _train(out: Path, data: PreparedData) -> None:
    from rich.console import Console

    from longview.cli.reports import show_reports
    from longview.training import InterruptedRunError, resolve_config, train
    from longview.training.progress import make_progress

    options = " ".join(f"--set {setting}" for setting in SETTINGS)
    _step(f"longview train {out}/data --out {out}/run {options}", "")
    config = resolve_config("hstu-small", SETTINGS)
    try:
        result = train(config, data, out / "run", progress=make_progress(Console(stderr=True)), baselines=True)
    except InterruptedRunError:
        raise InterruptedRunError("stopped; `longview demo` begins again, and replaces what it left") from None
    say()
    show_reports([result.test, *result.baselines])
    say(f"The result card: {out}/run/card.md")


def _recommend(out: Path, data: PreparedData) -> None:
    from longview.serving.recommender import Recommender

    recommender = Recommender.load(out / "run")
    user = str(data.user_ids.external(data.split.test.users[:1])[0])
    _step(f"longview recommend {out}/run --user {user} -k {SHOWN}", f"the last things {user} looked at:")
    say("  " + ", ".join(_recent_titles(recommender, user)) + "\n")
    emit_table(recommender.recommend(users=[user], k=SHOWN), aligned=True)
    item = str(data.item_ids.ids[0])
    _step(f"longview similar {out}/run --item {item} -k 5", "")
    emit_table(recommender.similar_items([item], k=5), aligned=True)


def _recent_titles(recommender: Recommender, user: str) -> list[str]:
    data = recommender.data
    number = int(data.user_ids.index([user])[0])
    rows = data.items[data.offsets[number] : data.offsets[number + 1]][-SHOWN:]
    return [str(title) for title in data.item_table["title"].take(rows.tolist()).to_pylist()]


def _step(command: str, outcome: str) -> None:
    say(f"\n$ {command}")
    if outcome:
        say(outcome)
