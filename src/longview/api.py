"""The Python surface: `import longview as lv`.

    data = lv.prepare("events.parquet", user="user_id", item="item_id", time="timestamp", out="data/")
    model = lv.fit(data, config="hstu-small", out="runs/first")
    model.recommend(users=["42"], k=10)                # pyarrow.Table: user, item, score, rank
    model.recommend(sequences=[["1198", "3552"]])      # a user nobody trained on
    model.similar_items(["1198"]); model.evaluate(); lv.load("runs/first")

The command line calls the same functions, so both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longview.config import parse
from longview.data.dataset import PreparedData
from longview.data.prepare import prepare
from longview.data.simulator import Simulation, SimulationConfig
from longview.data.simulator import simulate as simulate_log
from longview.serving.recommender import Recommender as Model
from longview.training import RunConfig, resolve_config, train
from longview.training.progress import TrainingProgress

__all__ = ["Model", "PreparedData", "fit", "load", "open_data", "prepare", "simulate"]


def open_data(path: str | Path) -> PreparedData:
    """Open a prepared data set.

    Raises:
        InputError: no prepared data set there, or a damaged one.
    """
    return PreparedData.open(path)


def fit(
    data: PreparedData | str | Path,
    config: str | RunConfig = "hstu-small",
    *,
    out: str | Path,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
) -> Model:
    """Train a model on `data`, write its run directory `out`, and return it ready to recommend.

    Args:
        data: a prepared data set, or its directory.
        config: a preset (`longview config` lists them), a .yaml file, or a `RunConfig`.
        out: a new directory; with `resume`, the one to go on with.
        overrides: settings on top, as `"model.layers=4"`.
        device: "cpu" or "cuda".
        progress: show a live line on stderr.

    Raises:
        InputError: an unknown setting, `out` is in use, data without anything to learn from.

    Example:
        >>> model = fit("data/ml-1m", out="runs/first", overrides=["loop.epochs=5"])  # doctest: +SKIP
        >>> model.evaluate().metrics["ndcg@10"]  # doctest: +SKIP
    """
    opened = data if isinstance(data, PreparedData) else PreparedData.open(data)
    chosen = config if isinstance(config, RunConfig) else resolve_config(config, overrides)
    if isinstance(config, RunConfig) and overrides:
        chosen = _override(config, overrides)
    train(chosen, opened, Path(out), device=device, resume=resume, progress=_progress() if progress else None)
    return Model.load(out, data=opened.path, device=device)


def load(path: str | Path, *, data: str | Path | None = None, device: str = "cpu") -> Model:
    """Load a trained run; `data` says where its data set is now, if it has moved.

    Raises:
        InputError: not a run directory, or a damaged one.
    """
    return Model.load(path, data=data, device=device)


def simulate(users: int = 2_000, items: int = 1_000, max_history: int = 200, seed: int = 0) -> Simulation:
    """Return a simulated log: tables `events`, `items` and `users`. Nothing of it is real.

    Example:
        >>> simulate(users=20, items=50).items.num_rows
        50
    """
    values = {"users": users, "items": items, "max_history": max_history, "seed": seed}
    return simulate_log(parse(SimulationConfig, values, "simulate"))


def _override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    from longview.config import override

    return parse(RunConfig, override(config.model_dump(mode="json"), overrides), "overrides")


def _progress() -> TrainingProgress:
    from rich.console import Console

    from longview.training.progress import make_progress

    return make_progress(Console(stderr=True))
