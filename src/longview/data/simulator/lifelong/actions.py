"""What a user does with an item: view < click < like < buy, each only with those before it, and seconds watched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longview.data.simulator.lifelong.catalogue import Catalogue

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ACTIONS = ("view", "click", "like", "buy")  # bits 0 to 3
STRENGTH = "watch"  # seconds
MATCH = 1.5  # log-odds of a click gained where an open item follows from the one before
BASE = 2.0  # logarithm of the seconds that a view lasts
LONGER = np.array([0.8, 0.5, 0.5])  # and what click, like and buy add to it
QUALITY, SPREAD = 0.3, 0.5  # what a better item adds, and the deviation


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(−values))."""
    return np.asarray(1 / (1 + np.exp(-values)))


def open_click(catalogue: Catalogue, item: Ints, match: Bools) -> Floats:
    """Return P(click) of cues and open items (inner numbers); `match` where the item follows from the one before."""
    return sigmoid(catalogue.quality[item, 0] + MATCH * match)


def bought_answers(catalogue: Catalogue, item: Ints, introduced: Bools) -> Bools:
    """Return which items (n,), inner numbers, are surely bought: answers of `config.bought`, not what is introduced."""
    slot = item // catalogue.config.choices
    found = np.zeros(len(item), bool)
    for family in catalogue.families:
        if family.name in catalogue.config.bought:
            found |= (slot >= family.first_slot) & (slot < family.first_slot + family.slots)
    return found & ~introduced


def chances(catalogue: Catalogue, item: Ints, click: Floats, bought: Bools) -> Floats:
    """Return (n, 3) the probabilities of click, like and buy, given that of a click; `bought` are those surely so."""
    like = click * sigmoid(catalogue.quality[item, 1])
    buy = np.zeros_like(like) if catalogue.config.bought else like * sigmoid(catalogue.quality[item, 2])
    return np.where(bought[:, None], 1.0, np.stack([click, like, buy], 1))


def expected_watch(catalogue: Catalogue, item: Ints, chances: Floats) -> Floats:
    """Return (n,) the mean seconds watched, given the probabilities of click, like and buy."""
    base = np.exp(BASE + QUALITY * catalogue.quality[item, 0] + SPREAD**2 / 2)
    levels = np.concatenate([np.ones((len(item), 1)), chances, np.zeros((len(item), 1))], 1)
    exactly = levels[:, :-1] - levels[:, 1:]
    return np.asarray(base * (exactly @ np.exp(np.concatenate([[0], np.cumsum(LONGER)]))))


def act(
    catalogue: Catalogue, item: Ints, click: Bools, liking: Floats, normal: npt.NDArray[np.float32], bought: Bools
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Return the action bitmask and the seconds watched of every event, given which are clicked.

    Those `bought` surely are clicked and liked, too.
    """
    quality = catalogue.quality[item]
    like_chance = sigmoid(quality[:, 1])
    click = click | bought
    like = (click & (liking < like_chance)) | bought
    buy = bought if catalogue.config.bought else click & (liking < like_chance * sigmoid(quality[:, 2]))
    longer = click * LONGER[0] + like * LONGER[1] + buy * LONGER[2]
    watch = np.exp((BASE + QUALITY * quality[:, 0] + longer + SPREAD * normal).astype(np.float32))
    return 1 + 2 * click.astype(np.int64) + 4 * like + 8 * buy, watch
