"""P×K batches: coverage, exact resume, ranks, balance, and labels that cannot be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.data.images.samplers import CategoryBatches, ClassBatches, CoveringBatches, class_numbers
from longview.errors import InputError


def labels_of(sizes: list[int]) -> Any:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return labels[np.random.default_rng(0).permutation(len(labels))]


def epoch(batches: ClassBatches, number: int = 0, first: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in batches.epoch(number, first)]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=12), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_every_image_comes_and_every_batch_is_p_classes_of_k(sizes: list[int], p: int, k: int, seed: int) -> None:
    labels = labels_of(sizes)
    settings_: Any = {"classes_per_batch": p, "samples_per_class": k, "seed": seed, "singletons": "repeat"}
    batches = CoveringBatches(labels, **settings_)
    found = epoch(batches)
    assert len(found) == batches.steps(0)
    for batch in found:
        classes = labels[batch].reshape(p, k)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == p
        for group in np.asarray(batch).reshape(p, k):
            times = Counter(group.tolist())
            assert max(times.values()) - min(times.values()) <= 1  # nothing is repeated that need not be
            assert len(times) == min(k, sizes[labels[group[0]]])
    assert {sample for batch in found for sample in batch} == set(range(len(labels)))


def test_even_classes_come_exactly_once() -> None:
    found = epoch(CoveringBatches(labels_of([8] * 12), classes_per_batch=4, samples_per_class=4))
    assert len(found) == 6
    assert sorted(sample for batch in found for sample in batch) == list(range(96))


@pytest.mark.parametrize("kind", ["covering", "category"])
def test_an_epoch_resumes_at_any_step_and_differs_from_the_next(kind: str) -> None:
    labels = labels_of([5, 9, 2, 14, 7, 3, 3, 6])

    def fresh(seed: int = 3) -> ClassBatches:
        if kind == "covering":
            return CoveringBatches(labels, classes_per_batch=3, samples_per_class=2, seed=seed)
        return CategoryBatches(labels, labels % 3, classes_per_batch=3, samples_per_class=2, seed=seed)

    whole = epoch(fresh(), 4)
    for step in range(len(whole)):
        assert epoch(fresh(), 4, step) == whole[step:]
    assert epoch(fresh(), 5) != whole
    assert epoch(fresh(4), 4) != whole


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_split_the_same_batches(world: int) -> None:
    labels = labels_of([6] * 9)
    arguments: Any = {"classes_per_batch": 4, "samples_per_class": 3}
    whole = epoch(CoveringBatches(labels, **arguments))
    parts = [epoch(CoveringBatches(labels, rank=r, world_size=world, **arguments)) for r in range(world)]
    assert [[sample for part in batch for sample in part] for batch in zip(*parts, strict=True)] == whole
    with pytest.raises(InputError, match="make it a multiple of 3"):
        CoveringBatches(labels, world_size=3, **arguments)
    with pytest.raises(InputError, match="rank=2"):
        CoveringBatches(labels, rank=2, world_size=2, **arguments)


def test_classes_meet_others_in_every_batch_of_an_epoch() -> None:
    """Five groups a class and many steps: the same classes must not be dealt together again and again."""
    labels = labels_of([20] * 60)
    together: Counter[tuple[int, int]] = Counter()
    for batch in epoch(CoveringBatches(labels, classes_per_batch=4, samples_per_class=4)):
        classes = sorted({int(labels[sample]) for sample in batch})
        together.update((a, b) for i, a in enumerate(classes) for b in classes[i + 1 :])
    assert max(together.values()) <= 3


def test_categories_share_every_batch_evenly() -> None:
    sizes = [4] * 40
    labels = labels_of(sizes)
    categories = np.where(labels < 30, 0, np.where(labels < 38, 1, 2))  # 30, 8 and 2 classes
    batches = CategoryBatches(labels, categories, classes_per_batch=8, samples_per_class=2)
    assert batches.steps(0) == 10
    for batch in epoch(batches):
        kinds = Counter(categories[batch].tolist())
        assert kinds == {0: 6, 1: 6, 2: 4}
        assert len(set(labels[batch].tolist())) == 8
    first_kind = Counter(int(categories[batch[0]]) for batch in epoch(batches, 1))
    assert len(first_kind) > 1
    with pytest.raises(InputError, match="a class belongs to one category"):
        CategoryBatches([0, 0, 1, 1], [0, 1, 1, 1], classes_per_batch=2, samples_per_class=2)
    with pytest.raises(InputError, match="one a sample"):
        CategoryBatches([0, 0, 1, 1], [0, 1], classes_per_batch=2, samples_per_class=2)


def test_classes_with_one_image_are_skipped_and_counted_or_repeated() -> None:
    labels = [0, 0, 1, 2, 2, 3]
    batches = CoveringBatches(labels, classes_per_batch=2, samples_per_class=2)
    assert batches.skipped == 2
    assert {sample for batch in epoch(batches) for sample in batch} == {0, 1, 3, 4}
    repeated = CoveringBatches(labels, classes_per_batch=4, samples_per_class=2, singletons="repeat")
    assert epoch(repeated)[0].count(2) == 2
    with pytest.raises(InputError, match=r"there are 2 classes with two images or more \(2 images are the only"):
        CoveringBatches(labels, classes_per_batch=3, samples_per_class=2)


def test_fewer_classes_than_p_are_refused() -> None:
    with pytest.raises(InputError, match=r"classes_per_batch=5, but there are 2 classes: lower.*validation_classes"):
        CoveringBatches([0, 0, 1, 1], classes_per_batch=5, samples_per_class=2)
    with pytest.raises(InputError, match="at least 1 × 1"):
        CoveringBatches([0, 0, 1, 1], classes_per_batch=2, samples_per_class=0)


def test_names_become_numbers() -> None:
    numbers, names = class_numbers(["shoe", "bag", "shoe", "10"])
    assert numbers.tolist() == [2, 1, 2, 0]
    assert names == ["10", "bag", "shoe"]
    numbers, names = class_numbers(torch.tensor([10, 9, 10]).tolist())
    assert numbers.tolist() == [1, 0, 1]
    assert names == ["9", "10"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, ""], r"2 of 3 samples \(1, 2\) have no label"),
        ([1.0, float("nan")], r"1 of 2 samples \(1\) have no label"),
        ([3, -1, 2], r"1 of 3 samples \(1\) have a negative label"),
        (["a", 3], "mix names and numbers: sample 1"),
        ([1.5, 2.0], "whole numbers or names"),
        ([], "no labels"),
    ],
)
def test_labels_that_are_none_are_named(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_numbers(labels)


@pytest.mark.parametrize("labels", [["a", "b"], [-1, 0], [[0, 1]], [0.5, 1.0]])
def test_a_sampler_takes_numbers_only(labels: Any) -> None:
    with pytest.raises(InputError, match="see class_numbers"):
        CoveringBatches(labels, classes_per_batch=1, samples_per_class=1)
