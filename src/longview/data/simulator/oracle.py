"""How good a model could be at most on a simulated lifelong log: the oracle's metrics, and what it says of candidates.

`oracle.arrow` of such a data set has a row for each of the newest events of every user (`from_end` 0 is the test
target of leave-last-out, 1 the validation target). Columns: `user`, `row` (of the events), `from_end`, `position`,
`item`, `action`, `strength_watch`; `component`, what made the event; `distance`, how many events back the one lies that
it depends on, 0 for none; and of the best possible prediction that sees all of the history: `probability` of the item,
`better` and `tied`, how many items are more, and as, probable (itself included), `click`, `like`, `buy`, the
probabilities given the item, and `watch`, mean seconds. The same with `_256` and so on for the best that sees only the
newest 256 events.

Ranks are among all items, those the user has had before included: evaluate models with `exclude_seen=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.config import parse
from longview.data.dataset import PreparedData
from longview.data.simulator.lifelong.actions import ACTIONS
from longview.data.simulator.lifelong.catalogue import Catalogue, make_catalogue
from longview.data.simulator.lifelong.config import LifelongConfig
from longview.data.simulator.lifelong.past import Past
from longview.data.simulator.lifelong.predict import Prediction, predict
from longview.errors import InputError

Floats = npt.NDArray[np.float64]
Which = Literal["test", "validation", "all"]

EDGES = (0, 1, 256, 1_024, 4_096, 16_384)  # of the groups by distance


@dataclass(frozen=True)
class Oracle:
    """Described events: `table` as above, and the `windows` of its restricted columns.

    Example:
        >>> oracle = Oracle.open("data/lifelong").select("test")  # doctest: +SKIP
        >>> oracle.metrics()["ndcg@10"], oracle.metrics(window=1024)["ndcg@10"]  # doctest: +SKIP
    """

    table: pa.Table
    windows: tuple[int, ...]

    @classmethod
    def open(cls, directory: str | Path) -> Oracle:
        """Read `oracle.arrow` of the data set in `directory`.

        Raises:
            InputError: no data set of `longview simulate --kind lifelong` there.
        """
        path = Path(directory) / "oracle.arrow"
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            windows = tuple(int(text) for text in table.schema.metadata[b"windows"].split(b",") if text)
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: no oracle there, or a damaged one ({error}); only `longview simulate --kind lifelong` writes "
                "one, beside its data set"
            ) from None
        return cls(table, windows)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def select(self, which: Which) -> Oracle:
        """Return the test targets, the validation targets, or all described events.

        Raises:
            InputError: no such selection.
        """
        if which not in ("test", "validation", "all"):
            raise InputError(f"which={which!r}: choose test, validation or all")
        if which == "all":
            return self
        return self._where(self.column("from_end") == (0 if which == "test" else 1))

    def column(self, name: str, window: int | None = None) -> npt.NDArray[Any]:
        """Return a column, as seen by the oracle with `window` newest events (None: all of the history).

        Raises:
            InputError: a window that the data set was not written with.
        """
        if window is not None and window not in self.windows:
            raise InputError(
                f"window {window}: this data set's oracle has {', '.join(map(str, self.windows))}; simulate it again "
                f'with --set "windows=[{window}]"'
            )
        values = self.table[name if window is None else f"{name}_{window}"]
        return np.asarray(values.to_numpy())

    def metrics(self, window: int | None = None, k: int = 10) -> dict[str, float]:
        """Return HR@k, NDCG@k (ties in random order: their expectation), mean log-likelihood, and NE and AUC by action.

        Raises:
            InputError: no such window, or `k` below one.
        """
        if k < 1:
            raise InputError(f"k={k}: must be at least 1")
        better, tied = self.column("better", window), self.column("tied", window)
        found = {
            f"hr@{k}": _mean(expected_hits(better, tied, k)),
            f"ndcg@{k}": _mean(expected_ndcg(better, tied, k)),
            "log_likelihood": _mean(np.log(self.column("probability", window))),
        }
        for bit, name in enumerate(ACTIONS[1:], 1):
            label, chance = self.column("action") >> bit & 1, self.column(name, window)
            found |= {f"ne_{name}": normalised_entropy(label, chance), f"auc_{name}": auc(label, chance)}
        return found

    def by_component(self, window: int | None = None, k: int = 10) -> dict[str, dict[str, float]]:
        """Return `metrics` and `share` (of the events) for each component."""
        component = self.table["component"].combine_chunks()
        names, codes = component.dictionary.to_pylist(), component.indices.to_numpy()
        return {name: self._group(codes == code, window, k) for code, name in enumerate(names) if (codes == code).any()}

    def by_distance(self, window: int | None = None, k: int = 10) -> dict[str, dict[str, float]]:
        """Return `metrics` and `share` for events that depend on nothing far back, on 1 to 255 events back, …"""
        distance = self.column("distance")
        found = {}
        for low, high in zip(EDGES, (*EDGES[1:], None), strict=True):
            inside = (distance >= low) & (distance < high if high is not None else True)
            if inside.any():
                name = "none" if low == 0 else f"{low}-{high - 1}" if high is not None else f"{low} and more"
                found[name] = self._group(inside, window, k)
        return found

    def _group(self, inside: npt.NDArray[np.bool_], window: int | None, k: int) -> dict[str, float]:
        return {"share": float(inside.mean()), **self._where(inside).metrics(window, k)}

    def _where(self, mask: npt.NDArray[np.bool_]) -> Oracle:
        return Oracle(self.table.filter(pa.array(mask)), self.windows)


def oracle_metrics(directory: str | Path, which: Which = "test", k: int = 10) -> dict[str, Any]:
    """Return the oracle's metrics for a data set: with all of the history and by window, component and distance.

    Raises:
        InputError: no such data set, or an unknown selection.
    """
    oracle = Oracle.open(directory).select(which)
    seen = {**{str(window): window for window in oracle.windows}, "all": None}
    return {
        "events": len(oracle),
        "which": which,
        "windows": {name: oracle.metrics(window, k) for name, window in seen.items()},
        "components": {name: oracle.by_component(window, k) for name, window in seen.items()},
        "distances": {name: oracle.by_distance(window, k) for name, window in seen.items()},
    }


def world_of(data: PreparedData) -> Catalogue:
    """Return the rules that a lifelong data set was simulated by.

    Raises:
        InputError: the data set is no such one.
    """
    card = data.meta.card
    if card.get("simulator") != "lifelong":
        raise InputError(f"{data.meta.name}: not simulated by `longview simulate --kind lifelong`: it has no oracle")
    return make_catalogue(parse(LifelongConfig, card["config"], f"{data.meta.name}: the simulator's rules"))


def score_candidates(
    data: PreparedData,
    user: int,
    position: int,
    candidates: Sequence[int] | npt.NDArray[Any],
    *,
    window: int | None = None,
    catalogue: Catalogue | None = None,
) -> Prediction:
    """Return the exact probabilities of `candidates` (catalogue indices) as event `position` of a user.

    `chances` are those of click, like and buy if that candidate is what comes; of a candidate that cannot come,
    `probability` is zero. `catalogue` is `world_of(data)`, to make it once for many users.

    Raises:
        InputError: no lifelong data set, no such user, position or item, or a window too narrow.
    """
    catalogue = catalogue or world_of(data)
    catalogue.config.check_window(window)
    wanted = np.asarray(candidates, np.int64)
    if not 0 <= user < data.num_users or not 0 <= position < data.offsets[user + 1] - data.offsets[user]:
        raise InputError(f"user {user}, position {position}: no such event among {data.num_users:,} users")
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= data.num_items):
        raise InputError(f"candidates must be catalogue indices from 0 to {data.num_items - 1:,}")
    assert data.timestamps is not None, "lifelong data has time"
    assert data.actions is not None, "and actions"
    begin = int(data.offsets[user])
    seen = slice(begin, begin + position + 1)  # with the event itself, for its time
    items = catalogue.inner[data.items[seen]]
    past = Past(catalogue, np.array([0, position + 1]), items, data.timestamps[seen], data.actions[seen])
    return predict(past, np.full(len(wanted), position), window, catalogue.inner[wanted])


def expected_hits(better: npt.NDArray[Any], tied: npt.NDArray[Any], k: int) -> Floats:
    """Return the probability that a target is in the top k, its ties being in random order."""
    return np.asarray(np.clip((k - better) / tied, 0, 1))


def expected_ndcg(better: npt.NDArray[Any], tied: npt.NDArray[Any], k: int) -> Floats:
    """Return the expected 1 / log2(rank + 1) within the top k, ties being in random order."""
    gains = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    first, last = np.minimum(better, k), np.minimum(better.astype(np.int64) + tied, k)
    return np.asarray((gains[last] - gains[first]) / tied)


def normalised_entropy(label: npt.NDArray[Any], chance: npt.NDArray[Any]) -> float:
    """Return the mean cross-entropy over that of the mean label; NaN where all labels are alike."""
    base = float(label.mean()) if len(label) else 0.0
    if base in (0.0, 1.0):
        return float("nan")
    p = np.clip(chance.astype(np.float64), 1e-12, 1 - 1e-12)
    loss = -np.where(label > 0, np.log(p), np.log1p(-p)).mean()
    return float(loss / -(base * np.log(base) + (1 - base) * np.log1p(-base)))


def auc(label: npt.NDArray[Any], chance: npt.NDArray[Any]) -> float:
    """Return the probability that a positive is above a negative, ties counting half; NaN where there is no pair."""
    positive = int((label > 0).sum())
    if positive in (0, len(label)):
        return float("nan")
    _, inverse, counts = np.unique(chance, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = rank[label > 0].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(label) - positive)))


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")
