"""A simulated log as files that `longview prepare` reads."""

from __future__ import annotations

from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from longview.data.simulator.simulate import Simulation
from longview.files import atomic_directory

README = """\
# A simulated log

Nothing here is real: `longview simulate` drew every user, item and event from a random number generator.
Users have a few long-lived tastes that return after long gaps, in short visits; items are born over time.

Settings: {settings}

* `events.parquet`: {events} events in order of time. `user_id`, `item_id`, `timestamp` (seconds, UTC); every row is
  a view, and `like`, `cart`, `buy` (0 or 1) say what else the user did; `dwell` is seconds spent.
* `items.csv`: {items} items. `item_id`, `title`, `category`, `style`, `brand`, `price`, `born` (seconds, UTC).
* `users.csv`: {users} users. `user_id`, `country`.

    longview prepare {where}/events.parquet --items {where}/items.csv --out data/simulated
"""


def write_simulation(log: Simulation, target: Path, *, overwrite: bool = False) -> Path:
    """Write `log` to the directory `target`, atomically: events.parquet, items.csv, users.csv and a README.

    Raises:
        InputError: `target` exists and `overwrite` is false.
    """
    settings = ", ".join(f"{key}={value}" for key, value in log.config.model_dump().items())
    text = README.format(
        settings=settings,
        events=f"{log.events.num_rows:,}",
        items=f"{log.items.num_rows:,}",
        users=f"{log.users.num_rows:,}",
        where=target,
    )
    with atomic_directory(target, overwrite=overwrite) as work:
        pq.write_table(log.events, work / "events.parquet")
        pa_csv.write_csv(log.items, work / "items.csv")
        pa_csv.write_csv(log.users, work / "users.csv")
        (work / "README.md").write_text(text, encoding="utf-8")
    return Path(target)
