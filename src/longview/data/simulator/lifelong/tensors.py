"""Lifelong histories as batches, made when they are asked for: no files, no memory, never the same user twice.

Another `first_user` is other people of the same world, so training on users 0, 1, 2, … and testing on users from
1,000,000 on needs no split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.simulator.lifelong.catalogue import Catalogue
from longview.data.simulator.lifelong.config import LifelongConfig
from longview.data.simulator.lifelong.generate import Histories, histories
from longview.data.simulator.lifelong.past import Past
from longview.data.simulator.lifelong.predict import Prediction, predict
from longview.errors import InputError


@dataclass(frozen=True)
class Requests:
    """The last event of each user as a target. `histories` is what precedes it; `target` (users,) int64 catalogue
    indices; `component` (users,) int8, an index of `component_names`; `distance` (users,) int32 events back that the
    target depends on, 0 for none; `oracle` the best possible with all of the history.
    """

    histories: JaggedBatch
    target: Tensor
    component: npt.NDArray[np.int8]
    distance: npt.NDArray[np.int32]
    oracle: Prediction


def history_batch(
    config: LifelongConfig,
    first_user: int,
    num_users: int,
    *,
    max_length: int | None = None,
    catalogue: Catalogue | None = None,
) -> JaggedBatch:
    """Return training histories of users [first_user, first_user + num_users), each event with the next as target.

    Args:
        config: the rules.
        first_user, num_users: whose histories.
        max_length: newest events to keep of each; None for all.
        catalogue: `make_catalogue(config)`, to make it once for many batches.

    Raises:
        InputError: no users, or a length below one.

    Example:
        >>> rules = LifelongConfig(max_history=400, bands=(), items=100, windows=(64,))
        >>> history_batch(rules, 0, 2).num_tokens
        798
    """
    made = _checked(config, first_user, num_users, max_length, catalogue)
    return _batch(made, max_length, targets=True)


def request_batch(
    config: LifelongConfig,
    first_user: int,
    num_users: int,
    *,
    max_length: int | None = None,
    window: int | None = None,
    catalogue: Catalogue | None = None,
) -> Requests:
    """Return histories without their last event, that event as the target, and the oracle that sees `window` events.

    Raises:
        InputError: no users, a length below one, or a window too narrow.
    """
    config.check_window(window)
    made = _checked(config, first_user, num_users, max_length, catalogue)
    last = made.offsets[1:] - 1
    past = Past(made.catalogue, made.offsets, made.item, made.time, made.action)
    return Requests(
        histories=_batch(made, max_length, targets=False),
        target=torch.from_numpy(made.public_items[last].astype(np.int64)),
        component=made.component[last],
        distance=made.distance[last],
        oracle=predict(past, last, window),
    )


def _checked(
    config: LifelongConfig, first_user: int, num_users: int, max_length: int | None, catalogue: Catalogue | None
) -> Histories:
    if num_users < 1 or first_user < 0 or (max_length is not None and max_length < 1):
        raise InputError(
            f"first_user {first_user}, num_users {num_users}, max_length {max_length}: users are numbered from 0, and "
            "there must be at least one user and one event"
        )
    return histories(config, first_user, num_users, catalogue=catalogue)


def _batch(made: Histories, max_length: int | None, *, targets: bool) -> JaggedBatch:
    end = made.offsets[1:] - 1
    start = made.offsets[:-1] if max_length is None else np.maximum(made.offsets[:-1], end - max_length)
    lengths = end - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
    items = made.public_items.astype(np.int64)
    return JaggedBatch(
        items=torch.from_numpy(items[rows]),
        offsets=torch.from_numpy(offsets),
        timestamps=torch.from_numpy(made.time[rows]),
        actions=torch.from_numpy(made.action[rows]),
        targets=torch.from_numpy(items[rows + 1]) if targets else None,
    )
