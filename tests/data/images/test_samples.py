"""Splits and class numbers of a source."""

from __future__ import annotations

from longview.data.images.listing import Entry
from longview.data.images.samples import hold_out, number_classes


def entries(*labels: str) -> list[Entry]:
    return [Entry(f"{number}.png", label, None) for number, label in enumerate(labels)]


def test_classes_of_the_training_split_are_numbered_first() -> None:
    labels, names = number_classes(entries("a", "z", "b", "z"), ["test", "train", "test", "train"])
    assert names == ["z", "a", "b"]
    assert labels.tolist() == [1, 0, 2, 0]


def test_held_out_classes_are_at_least_one_and_never_all() -> None:
    for number in (2, 3, 10):
        labels = [str(label) for label in range(number)]
        for share in (0.01, 0.5, 0.99):
            splits, _ = hold_out(entries(*labels), share)
            assert set(splits) == {"train", "test"}
    assert hold_out(entries("only"), 0.5)[0] == ["train"]


def test_which_classes_are_held_out_depends_on_their_names_alone() -> None:
    splits = dict(zip("abcdef", hold_out(entries(*"abcdef"), 0.3)[0], strict=True))
    backwards = dict(zip("fedcba", hold_out(entries(*"fedcba"), 0.3)[0], strict=True))
    assert splits == backwards
