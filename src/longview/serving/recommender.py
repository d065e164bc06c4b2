"""Recommendations from a trained model: external ids in, a table with external ids out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from longview.data.dataset import IdMap, PreparedData
from longview.data.schema import Inputs
from longview.errors import InputError
from longview.evaluation import Report, evaluate
from longview.evaluation.evaluate import Which
from longview.evaluation.impression_report import ImpressionReport
from longview.evaluation.ranking import inputs_of
from longview.models.interface import VectorRecommender
from longview.ops.topk import blocked_topk
from longview.serving.caps import Caps
from longview.serving.encode import encode
from longview.serving.filters import IdList, allowed_items
from longview.serving.histories import Histories
from longview.serving.lookup import known_index
from longview.serving.ranking import best_items
from longview.training.devices import device_named
from longview.training.goals import make_goal
from longview.training.rundir import LoadedRun, load_model

USERS_AT_ONCE = 8_192
Sequences = Sequence[Sequence[Any]]


class Recommender:
    """A model with the catalogue it was trained on and, for known users, their histories.

    Args:
        model: scores by inner product (`longview.models.interface.VectorRecommender`).
        items: the catalogue: `id`, and `title` and feature columns where known; row i is item i of the model.
        data: opens the prepared data set that holds the users' histories; called when they are first asked for.
        device: where to compute.

    Example:
        >>> table = Recommender.load("runs/first").recommend(sequences=[["1198", "3552"]], k=5)  # doctest: +SKIP
        >>> table.column_names  # doctest: +SKIP
        ['user', 'item', 'score', 'rank', 'title']
    """

    def __init__(
        self,
        model: VectorRecommender,
        items: pa.Table,
        data: PreparedData | Callable[[], PreparedData] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = device_named(device)
        self.model = model.to(self.device).eval() if isinstance(model, torch.nn.Module) else model
        self.items = items
        self.item_ids = IdMap(items["id"].combine_chunks())
        self._data = data
        self.run: LoadedRun | None = None

    @classmethod
    def load(
        cls, path: str | Path, *, data: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> Recommender:
        """Load the run in directory `path`.

        Args:
            path: the directory that `longview train` wrote.
            data: the prepared data set it was trained on, where that has moved since.
            device: where to compute; a model loads on the CPU whatever trained it.

        Raises:
            InputError: not a run directory, or a damaged one; no such device.
        """
        run = load_model(path, device=device_named(device))
        recommender = cls(run.model, run.items, lambda: run.open_data(data), device=device)
        recommender.run = run
        return recommender

    @cached_property
    def data(self) -> PreparedData:
        """The prepared data set of the run.

        Raises:
            InputError: it is not where it was, or not the one the model was trained on.
        """
        if self._data is None:
            raise InputError("this model came without a data set, so it knows no users: give sequences instead")
        return self._data() if callable(self._data) else self._data

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        sequences: Sequences | None = None,
        k: int = 10,
        *,
        include_seen: bool = False,
        allow: IdList | None = None,
        deny: IdList | None = None,
        max_per_category: int | None = None,
        category: str = "category",
    ) -> pa.Table:
        """Return the `k` best items for each user or sequence, best first.

        Args:
            users: external ids of users of the data set; with neither users nor sequences, all of them.
            sequences: histories of anybody, oldest first, as external item ids or (item id, seconds) pairs.
            k: items each.
            include_seen: also recommend what is in the history.
            allow: recommend these items only: external ids, or a file with one id a line.
            deny: never recommend these, in the same form.
            max_per_category: at most so many of one category; an item of several counts in each.
            category: the column of the catalogue that holds the category.

        Returns:
            A table: `user` string (for a sequence its number: "0", "1", …), `item` string, `score` float32 (the
            model's own scale, comparable for one user only), `rank` int32 from 1, and `title` where the catalogue
            has titles. Fewer than `k` rows where fewer items are left, with a warning.

        Raises:
            InputError: an unknown user or item, an empty sequence, k below 1 or above the size of the catalogue,
                contradictory lists.
        """
        if users is not None and sequences is not None:
            raise InputError("recommend for users or for sequences, not both in one call")
        self._check_k(k)
        allowed = allowed_items(self.item_ids, allow, deny)
        allowed = None if allowed is None else allowed.to(self.device)
        caps = None if max_per_category is None else Caps.of(self.items, category, max_per_category)
        names, parts = self._histories(users, sequences)
        found = []
        for histories in parts:
            seen = None if include_seen else histories.seen(self.device)
            queries = encode(self.model, histories, self.device)
            found.append(best_items(queries, self._item_vectors, k, exclude=seen, allow=allowed, caps=caps))
        scores, chosen = _stack(found, k)
        return self._table("user", names, scores, chosen, k)

    def similar_items(self, items: Sequence[Any], k: int = 10) -> pa.Table:
        """Return the `k` items nearest to each of `items` by the cosine of their vectors, best first.

        Returns:
            A table: `query` string (the item asked for), `item`, `score` float32 in [−1, 1], `rank`, and `title`.

        Raises:
            InputError: an unknown item, or k below 1 or above the size of the catalogue.
        """
        self._check_k(k)
        index = torch.from_numpy(known_index(self.item_ids, items, "item", self._titles)).to(self.device)
        vectors = F.normalize(self._item_vectors, dim=1)
        itself = (index, torch.arange(index.numel() + 1, device=self.device))
        scores, chosen = blocked_topk(vectors[index], vectors, k, exclude=itself)
        names = self.item_ids.external(index.cpu().numpy())
        return self._table("query", names, scores.clamp(-1, 1), chosen, k)

    def evaluate(self, split: Which = "test", *, exclude_seen: bool | None = None) -> Report | ImpressionReport:
        """Rank the target of every user of a split among the whole catalogue; see `longview.evaluation.evaluate`.

        A model trained with `task: ranking` is evaluated on the candidates of the split's requests instead.

        Example:
            >>> Recommender.load("runs/first").evaluate().metrics["ndcg@10"]  # doctest: +SKIP
        """
        if self.run is not None and self.run.config.task == "ranking":
            goal = make_goal(self.run.config, self.data, self.run.schema, self.run.tasks)
            return goal.reports(self.run.model, split, self.device)[0]
        name = None if self.run is None else self.run.config.name
        return evaluate(self.model, self.data, split, exclude_seen=exclude_seen, device=self.device, name=name)

    @cached_property
    def _inputs(self) -> Inputs | None:
        return inputs_of(self.model, self.data)

    @cached_property
    def _item_vectors(self) -> Tensor:
        with torch.no_grad():
            return self.model.item_vectors().detach().float()

    @property
    def _titles(self) -> pa.ChunkedArray | None:
        titles = self.items["title"] if "title" in self.items.column_names else None
        return titles if titles is not None and titles.null_count < len(titles) else None

    def _check_k(self, k: int) -> None:
        if not isinstance(k, int | np.integer):
            raise InputError(f"k={k!r}: a whole number of items")
        if not 1 <= k <= len(self.item_ids):
            raise InputError(f"k={k} is outside 1 to {len(self.item_ids)}, the number of items in the catalogue")

    def _histories(
        self, users: Sequence[Any] | None, sequences: Sequences | None
    ) -> tuple[pa.Array, Iterator[Histories]]:
        if sequences is not None:
            names = pa.array([str(number) for number in range(len(sequences))], pa.string())
            return names, iter([self._of_sequences(sequences)] if len(sequences) else [])
        ids, active = self.data.user_ids, np.diff(self.data.offsets) > 0
        index = np.flatnonzero(active) if users is None else known_index(ids, users, "user")
        if not active[index].all():
            raise InputError(f"user {ids.external(index[~active[index]])[0].as_py()!r} has no events to go by")
        parts = (index[at : at + USERS_AT_ONCE] for at in range(0, len(index), USERS_AT_ONCE))
        return ids.external(index), (Histories.of_users(self.data, part, self._inputs) for part in parts)

    def _of_sequences(self, sequences: Sequences) -> Histories:
        if isinstance(sequences, str) or any(isinstance(sequence, str) for sequence in sequences):
            raise InputError('sequences are lists of item ids, for example [["1198", "3552"]]')
        empty = [number for number, sequence in enumerate(sequences) if not len(sequence)]
        if empty:
            raise InputError(f"sequence {empty[0]} is empty: a history needs at least one item")
        flat = [event for sequence in sequences for event in sequence]
        timed = [isinstance(event, tuple) for event in flat]
        if any(timed) and not all(timed):
            raise InputError("some events of the sequences have a time and some have none: give all or no times")
        offsets = np.cumsum([0, *map(len, sequences)])
        names = [event[0] for event in flat] if any(timed) else flat
        times = np.array([int(event[1]) for event in flat], np.int64) if any(timed) else None
        if times is None and _reads_time(self.model):
            warnings.warn(
                "this model reads times and the sequences have none: their events are taken to happen at once",
                stacklevel=4,
            )
            times = np.zeros(len(flat), np.int64)
        return Histories(known_index(self.item_ids, names, "item", self._titles), offsets, times)

    def _table(self, first: str, names: pa.Array, scores: Tensor, chosen: Tensor, k: int) -> pa.Table:
        present = (chosen >= 0).cpu().numpy()
        rows, ranks = np.nonzero(present)
        items = pa.array(chosen.cpu().numpy()[present])
        short = int((present.sum(1) < k).sum())
        if short:
            warnings.warn(
                f"fewer than {k} items are left for {short} of {len(names)} rows asked for, "
                "after seen items, lists and caps",
                stacklevel=3,
            )
        table = pa.table(
            {
                first: names.take(pa.array(rows)),
                "item": self.item_ids.ids.take(items),
                "score": pa.array(scores.cpu().numpy()[present].astype(np.float32)),
                "rank": pa.array((ranks + 1).astype(np.int32)),
            }
        )
        titles = self._titles
        return table if titles is None else table.append_column("title", titles.take(items))


def _reads_time(model: object) -> bool:
    config = getattr(model, "config", None)
    embedding, attention = getattr(config, "embedding", None), getattr(config, "attention", None)
    return getattr(embedding, "time_gaps", "none") != "none" or bool(getattr(attention, "time_bias", False))


def _stack(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    if not parts:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    return torch.cat([scores for scores, _ in parts]), torch.cat([chosen for _, chosen in parts])
