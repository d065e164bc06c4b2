"""Which images make a batch: P classes of K images each, in an order that resumes exactly and splits over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.errors import InputError

Rows = npt.NDArray[np.int64]
Singletons = Literal["skip", "repeat"]


def class_numbers(labels: Sequence[Any] | npt.NDArray[Any]) -> tuple[Rows, list[str]]:
    """Return each sample's class as a number, and the names of the classes; names sort as text, numbers by value.

    Example:
        >>> class_numbers(["shoe", "bag", "shoe"])
        (array([1, 0, 1]), ['bag', 'shoe'])

    Raises:
        InputError: missing labels (None, NaN, empty text), negative numbers, or names mixed with numbers.
    """
    values = list(labels)
    missing = [row for row, value in enumerate(values) if value is None or value != value or value == ""]
    if missing:
        raise InputError(f"{_rows(missing, len(values))} no label: give one, or leave those samples out")
    if not values:
        raise InputError("no labels: at least one sample expected")
    text = [isinstance(value, str) for value in values]
    if any(text) and not all(text):
        raise InputError(f"labels mix names and numbers: sample {text.index(not text[0])} is of the other kind")
    if not text[0]:
        whole = [value for value in values if isinstance(value, (int, np.integer)) and not isinstance(value, bool)]
        if len(whole) < len(values):
            raise InputError("labels must be whole numbers or names, got fractions or other values")
        negative = [row for row, value in enumerate(values) if value < 0]
        if negative:
            raise InputError(f"{_rows(negative, len(values))} a negative label, which is no class: leave them out")
    names, numbers = np.unique(np.asarray(values), return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


class ClassBatches(ABC):
    """Batches of `classes_per_batch` (P) classes with `samples_per_class` (K) images each, class after class.

    The order depends on (seed, epoch) alone, so a run resumes at any (epoch, step), on the same or on another number
    of ranks: rank r of a job takes its run of P / world_size classes of every batch.

    Args:
        labels: (n,) class numbers, not negative; see `class_numbers`.
        singletons: classes with one image make no positive pair: `skip` them, or `repeat` the image.
        seed: of all drawing.
        rank, world_size: the place in a job.

    Attributes:
        skipped: images of classes that are left out.

    Raises:
        InputError: fewer classes than P, negative labels, or P that does not divide among the ranks.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        singletons: Singletons = "skip",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        numbers = np.asarray(labels)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer) or (numbers < 0).any():
            raise InputError("labels must be one class number a sample, 0 or more: see class_numbers for names")
        if classes_per_batch < 1 or samples_per_class < 1:
            raise InputError(f"{classes_per_batch} classes × {samples_per_class} samples a batch: at least 1 × 1")
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank}: from 0 to world_size - 1 = {world_size - 1} expected")
        if classes_per_batch % world_size:
            raise InputError(
                f"classes_per_batch={classes_per_batch} does not divide among {world_size} ranks: "
                f"make it a multiple of {world_size}"
            )
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        order = np.argsort(numbers, kind="stable")
        _, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        kept = counts >= (2 if singletons == "skip" and samples_per_class > 1 else 1)
        self.members: list[Rows] = [
            order[a : a + n] for a, n in zip(starts[kept].tolist(), counts[kept].tolist(), strict=True)
        ]
        self.skipped = int(counts[~kept].sum())
        if len(self.members) < classes_per_batch:
            left = f" with two images or more ({self.skipped} images are the only ones of theirs)"
            raise InputError(
                f"classes_per_batch={classes_per_batch}, but there are {len(self.members)} classes"
                f"{left if self.skipped else ''}: lower classes_per_batch or add classes (those held out by "
                "data.validation_classes do not count)"
            )

    @abstractmethod
    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""

    @abstractmethod
    def _batches(self, epoch: int, first_step: int) -> Iterator[Rows]:
        """Yield (P, K) samples of all ranks."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        """Yield this rank's samples of each batch from `first_step` on, (P / world_size · K,) int64."""
        part = self.classes_per_batch // self.world_size
        for batch in self._batches(epoch, first_step):
            yield torch.from_numpy(batch[self.rank * part : (self.rank + 1) * part].reshape(-1).astype(np.int64))

    def _some(self, members: Rows, generator: np.random.Generator) -> Rows:
        """Return K images of a class; each once before any comes twice."""
        size = self.samples_per_class
        rounds = [generator.permutation(members) for _ in range(-(-size // len(members)))]
        chosen: Rows = np.concatenate(rounds)[:size]
        return chosen


class CoveringBatches(ClassBatches):
    """P×K batches in which every image comes at least once an epoch.

    A class is cut into groups of K images in random order, the last one filled up from the same class; no batch holds
    two groups of one class. Where one class has more groups than there would be batches, there are as many batches,
    and the places that nobody needs are filled with further groups of random classes.

    Example:
        >>> batches = CoveringBatches([0, 0, 1, 1, 2, 2], classes_per_batch=2, samples_per_class=2)
        >>> sorted({int(sample) for batch in batches.epoch(0) for sample in batch})
        [0, 1, 2, 3, 4, 5]
    """

    def steps(self, epoch: int) -> int:
        groups = [-(-len(members) // self.samples_per_class) for members in self.members]
        return max(-(-sum(groups) // self.classes_per_batch), *groups)

    def _batches(self, epoch: int, first_step: int) -> Iterator[Rows]:
        generator = np.random.default_rng((self.seed, epoch))
        steps = self.steps(epoch)
        classes: list[list[int]] = [[] for _ in range(steps)]
        groups: list[list[Rows]] = [[] for _ in range(steps)]
        dealt = [(number, group) for number in generator.permutation(len(self.members)).tolist()
                 for group in self._groups(self.members[number], generator)]  # fmt: skip
        for (number, group), step in zip(dealt, _deal([n for n, _ in dealt], steps, generator), strict=True):
            classes[step].append(number)
            groups[step].append(group)
        for step in range(first_step, steps):
            # A generator a step, so that a resumed epoch draws what an uninterrupted one would.
            own = np.random.default_rng((self.seed, epoch, step))
            held = set(classes[step])
            while len(groups[step]) < self.classes_per_batch:
                number = int(own.integers(len(self.members)))
                if number not in held:
                    held.add(number)
                    groups[step].append(self._some(self.members[number], own))
            yield np.stack(groups[step])[own.permutation(self.classes_per_batch)]

    def _groups(self, members: Rows, generator: np.random.Generator) -> list[Rows]:
        """Return a class in groups of K images, every image at least once."""
        size = self.samples_per_class
        order = generator.permutation(members)
        lacking = -len(order) % size
        if lacking:
            # Fill from images that are not in the last group, as long as there are any.
            rest, last = order[: len(order) - len(order) % size], order[len(order) - len(order) % size :]
            more = np.concatenate([generator.permutation(rest), np.resize(last, size)])[:lacking]
            order = np.concatenate([order, more])
        return list(order.reshape(-1, size))


class CategoryBatches(ClassBatches):
    """P×K batches whose classes are spread evenly over categories, however many classes a category has.

    Where P is no multiple of the number of categories, the ones that get a class more change from batch to batch; a
    category with fewer classes than its places leaves them to the others. An epoch has as many batches as would show
    every image once on average; small categories come up more often than that, large ones less.

    Args:
        labels: as in `ClassBatches`.
        categories: (n,) a category number for each sample; all samples of a class have the same.
        others: as in `ClassBatches`.

    Raises:
        InputError: as `ClassBatches`; a class in two categories.
    """

    def __init__(self, labels: npt.ArrayLike, categories: npt.ArrayLike, **others: Any) -> None:
        super().__init__(labels, **others)
        values = np.asarray(categories)
        if values.shape != np.asarray(labels).shape:
            raise InputError(f"categories must be one a sample, {np.asarray(labels).shape}, got {values.shape}")
        own = [values[members] for members in self.members]
        for members, found in zip(self.members, own, strict=True):
            if (found != found[0]).any():
                odd = int(members[np.flatnonzero(found != found[0])[0]])
                raise InputError(
                    f"samples {int(members[0])} and {odd} are of one class and of the categories {found[0]} and "
                    f"{values[odd]}: a class belongs to one category"
                )
        kinds, of_class = np.unique(np.asarray([found[0] for found in own]), return_inverse=True)
        self.classes_of = [np.flatnonzero(of_class == kind) for kind in range(len(kinds))]

    def steps(self, epoch: int) -> int:
        images = sum(len(members) for members in self.members)
        return max(1, images // (self.classes_per_batch * self.samples_per_class))

    def _batches(self, epoch: int, first_step: int) -> Iterator[Rows]:
        for step in range(first_step, self.steps(epoch)):
            generator = np.random.default_rng((self.seed, epoch, step))
            queues = [generator.permutation(classes).tolist() for classes in self.classes_of]
            chosen: list[int] = []
            while len(chosen) < self.classes_per_batch:
                for kind in generator.permutation(len(queues)).tolist():
                    if queues[kind] and len(chosen) < self.classes_per_batch:
                        chosen.append(queues[kind].pop())
            yield np.stack([self._some(self.members[number], generator) for number in chosen])


def _deal(classes: Sequence[int], steps: int, generator: np.random.Generator) -> Rows:
    """Return a step for each of a list of groups, runs of equal `classes`, so that no class comes twice in a step.

    Groups are dealt in rounds of one a step, each round in a new order. A run that goes on into the next round takes
    steps there that it has not had; no run is longer than `steps`, so there are enough of them.
    """
    dealt = np.empty(len(classes), np.int64)
    for first in range(0, len(classes), steps):
        here = classes[first : first + steps]
        order = generator.permutation(steps)
        if first and here[0] == classes[first - 1]:
            running = here[0]
            begin = first - 1
            while begin and classes[begin - 1] == running:
                begin -= 1
            had = np.isin(order, dealt[begin:first])
            order = np.concatenate([order[~had], order[had]])
            goes_on = next((at for at, number in enumerate(here) if number != running), len(here))
            order[goes_on:] = generator.permutation(order[goes_on:])
        dealt[first : first + len(here)] = order[: len(here)]
    return dealt


def _rows(rows: list[int], number: int) -> str:
    """Return `samples 3, 7 (2 of 10) have`."""
    shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    return f"{len(rows)} of {number} samples ({shown}) have"
