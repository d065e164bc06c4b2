"""The simulated catalogue: categories, styles, brands, prices, skewed popularity, and births over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.simulator.config import START, SimulationConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NOUNS = (  # noqa: SIM905
    "kettle lamp chair rug teapot backpack notebook umbrella scarf candle vase clock mirror blanket cushion basket "
    "bottle mug bowl plate knife board apron tray shelf stool desk bench frame poster plant planter watering-can "
    "trowel tent lantern hammock radio speaker headphones"
).split()
STYLES = ["linen", "walnut", "copper", "cobalt", "marble", "moss", "amber", "slate"]
BRANDS = ["Aster", "Birch", "Calder", "Doria", "Elm", "Fjord", "Grove", "Haven", "Iris", "Juniper", "Kestrel", "Lark"]


@dataclass(frozen=True)
class Catalogue:
    """Attributes of every item; index i is item i. `birth` is in seconds (UTC)."""

    category: Ints
    style: Ints
    brand: Ints
    price: Floats
    appeal: Floats
    birth: Ints
    companion: Ints
    num_styles: int

    @property
    def cell(self) -> Ints:
        """(num_items,) the number of an item's (category, style) pair."""
        return self.category * self.num_styles + self.style

    def table(self) -> pa.Table:
        """Return the catalogue as a table: item_id, title, category, style, brand, price, born."""
        nouns, styles, brands = (np.array(words) for words in (NOUNS, STYLES, BRANDS))
        noun, style, brand = nouns[self.category], styles[self.style], brands[self.brand]
        numbers = _numbers_within(self.cell * len(BRANDS) + self.brand)
        titles = [f"{b} {s} {n} {k}" for b, s, n, k in zip(brand, style, noun, (numbers + 1).tolist(), strict=True)]
        return pa.table(
            {
                "item_id": item_names(len(self.category)),
                "title": pa.array(titles),
                "category": pa.array(noun),
                "style": pa.array(style),
                "brand": pa.array(brand),
                "price": pa.array(self.price),
                "born": pa.array(self.birth),
            }
        )


def item_names(count: int) -> pa.Array:
    """Return external item ids p0001, p0002, … as strings."""
    return _names("p", count)


def user_names(count: int) -> pa.Array:
    """Return external user ids u0001, u0002, … as strings."""
    return _names("u", count)


def make_catalogue(config: SimulationConfig, generator: np.random.Generator) -> Catalogue:
    """Draw a catalogue. The first item of every (category, style) pair exists from the start."""
    n, categories, styles = config.items, config.num_categories, config.num_styles
    cells = categories * styles
    category_weight = 1 / np.arange(1, categories + 1) ** 0.5
    category = generator.choice(categories, n, p=category_weight / category_weight.sum())
    style = generator.integers(styles, size=n)
    first = min(cells, n)
    category[:first], style[:first] = np.divmod(np.arange(first), styles)
    birth = np.full(n, START, np.int64)
    later = generator.random(n) < config.born_later
    later[:first] = False
    birth[later] += (generator.random(int(later.sum())) * 0.98 * config.span).astype(np.int64)
    price: Floats = np.round(np.exp(generator.normal(3.2, 0.7, n)), 2).astype(np.float64)
    appeal = 1.0 / (1 + generator.permutation(n))
    shuffled = generator.permutation(n)  # so that ids tell nothing about category, birth or appeal
    cell = (category * styles + style)[shuffled]
    return Catalogue(
        category=category[shuffled],
        style=style[shuffled],
        brand=generator.integers(len(BRANDS), size=n),
        price=price,
        appeal=appeal,
        birth=birth[shuffled],
        companion=_next_in_group(cell),
        num_styles=styles,
    )


class BornSampler:
    """Draws items of a group by appeal, among those already born at the time of asking.

    Items are sorted by (group, birth); a draw inverts the running sum of appeal between the start of the group
    and the last item born in time, so that millions of draws are two binary searches.
    """

    def __init__(self, group: Ints, birth: Ints, appeal: Floats) -> None:
        self.order = np.lexsort((birth, group))
        self.origin = int(birth.min())
        self.stride = int(birth.max()) - self.origin + 2
        self.keys = group[self.order] * self.stride + (birth[self.order] - self.origin)
        self.sums = np.concatenate([[0.0], np.cumsum(appeal[self.order])])

    def draw(self, groups: Ints, times: Ints, uniform: Floats) -> Ints:
        """Return an item for each (group, time); −1 where the group has nothing yet. `uniform` is in [0, 1)."""
        since = np.clip(times - self.origin, -1, self.stride - 2)
        begin = np.searchsorted(self.keys, groups * self.stride, side="left")
        end = np.searchsorted(self.keys, groups * self.stride + since, side="right")
        low, high = self.sums[begin], self.sums[end]
        at = np.searchsorted(self.sums, low + uniform * (high - low), side="right") - 1
        at = np.clip(at, begin, np.maximum(end - 1, begin))
        return np.where(end > begin, self.order[np.minimum(at, len(self.order) - 1)], -1)


def _names(letter: str, count: int) -> pa.Array:
    digits = max(4, len(str(count)))
    return pa.array([f"{letter}{number:0{digits}d}" for number in range(1, count + 1)])


def _numbers_within(group: Ints) -> Ints:
    """Return 0, 1, 2, … within each group, in order of appearance."""
    order = np.argsort(group, kind="stable")
    begins: npt.NDArray[Any] = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.diff(np.append(begins, len(group)))
    numbers = np.empty(len(group), np.int64)
    numbers[order] = np.arange(len(group)) - np.repeat(begins, counts)
    return numbers


def _next_in_group(group: Ints) -> Ints:
    """Return for each item the next one of its group, the last pointing to the first."""
    order = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.diff(np.append(begins, len(group)))
    following = np.arange(1, len(group) + 1)
    following[begins + counts - 1] = begins
    companion = np.empty(len(group), np.int64)
    companion[order] = order[following]
    return companion
