"""Published layouts are read as they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longview.data.images.layouts import PUBLISHED, read_layout
from longview.data.images.listing import Listing
from longview.data.images.source import is_image_source
from longview.data.images.store import open_store
from longview.data.images.table import read_table
from longview.errors import InputError
from tests.data.images import pictures
from tests.data.images.pictures import put


def read(path: Path) -> Listing:
    return read_layout(open_store(path))


def rows(listing: Listing) -> list[tuple[str | None, str | None, str | None]]:
    return [(entry.label, entry.split, entry.category) for entry in listing.entries]


def test_sop(tmp_path: Path) -> None:
    listing = read(pictures.sop(tmp_path))
    assert listing.layout == "sop"
    assert rows(listing)[:3] == [("1", "train", "bicycle"), ("1", "train", "bicycle"), ("2", "train", "cabinet")]
    assert [entry.split for entry in listing.entries].count("test") == 4
    assert listing.entries[0].key == "bicycle_final/111085122871_0.JPG"


def test_inshop_has_other_images_in_query_and_gallery(tmp_path: Path) -> None:
    listing = read(pictures.inshop(tmp_path))
    assert listing.layout == "inshop"
    assert " ".join(str(split) for _, split, _ in rows(listing)) == "train train query gallery query gallery gallery"
    assert rows(listing)[2] == ("id_00000002", "query", "WOMEN/Dresses")
    assert listing.entries[2].key == "Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg"


def test_deepfashion2_cuts_garments_and_asks_consumers_of_shops(tmp_path: Path) -> None:
    listing = read(pictures.deepfashion2(tmp_path))
    assert listing.layout == "deepfashion2"
    assert [(e.label, e.split, e.box) for e in listing.entries] == [
        ("train/1/1", "train", (1, 1, 7, 9)),
        ("train/1/1", "train", (1, 1, 7, 9)),
        ("validation/1/1", "query", (1, 1, 7, 9)),
        ("validation/1/2", "query", (2, 1, 8, 9)),
        ("validation/1/1", "gallery", (1, 1, 7, 9)),
        ("validation/1/2", "gallery", (1, 1, 7, 9)),
        ("validation/2/1", "query", (1, 1, 7, 9)),
    ]
    assert listing.notes == ("1 garments of style 0 (no match) are left out",)


@pytest.mark.parametrize("parts", [("images_background", "images_evaluation"), ("train", "test")])
def test_omniglot(tmp_path: Path, parts: tuple[str, str]) -> None:
    listing = read(pictures.omniglot(tmp_path, parts))
    assert listing.layout == "omniglot"
    assert len(listing.entries) == 12
    assert set(rows(listing)) == {
        (f"{alphabet}/character{number:02d}", split, alphabet)
        for alphabet, split in (("Greek", "train"), ("Tengwar", "test"))
        for number in (1, 2)
    }


def test_the_real_omniglot(real_data: Callable[[str], Path]) -> None:
    listing = read(real_data("omniglot/omniglot.zip"))
    assert listing.layout == "omniglot"
    for split, (images, classes) in PUBLISHED["omniglot"].items():
        labels = [entry.label for entry in listing.entries if entry.split == split]
        assert (len(labels), len(set(labels))) == (images, classes)


def test_a_folder_of_folders(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", "")
    put(tmp_path / "dog" / "poodle" / "b.jpeg", "")
    put(tmp_path / "dog" / ".hidden.png", "")
    put(tmp_path / "dog" / "notes.txt", "")
    put(tmp_path / "loose.png", "")
    listing = read(tmp_path)
    assert [(e.key, e.label, e.split) for e in listing.entries] == [
        ("cat/a.png", "cat", None),
        ("dog/poodle/b.jpeg", "dog/poodle", None),
    ]
    assert "loose.png" in listing.notes[0]


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    for part in ("Train", "val", "query", "gallery"):
        put(tmp_path / part / "cat" / "a.png", "")
    found = {(entry.label, entry.split) for entry in read(tmp_path).entries}
    assert found == {("cat", split) for split in ("train", "validation", "query", "gallery")}


@pytest.mark.parametrize("make", [pictures.sop, pictures.inshop, pictures.deepfashion2, pictures.omniglot])
def test_an_archive_is_read_like_the_folder_in_it(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "packed" / "Data_Set")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "packed"))
    assert rows(read(archive)) == rows(read(folder))
    store = open_store(archive)
    assert all(store.read(entry.key) for entry in read(archive).entries)


def test_a_table(tmp_path: Path) -> None:
    table = put(tmp_path / "t.csv", "path,label,split\na.png,shoe,train\nb.png,,test\n")
    assert rows(read_table(table)) == [("shoe", "train", None), (None, "test", None)]
    numbers = put(tmp_path / "n.csv", "file,class_id\na.png,007\nb.png,12\n")
    assert rows(read_table(numbers)) == [("007", None, None), ("12", None, None)]
    other = put(tmp_path / "o.csv", "where,what\na.png,x\n")
    assert rows(read_table(other, path_column="where", label_column="what")) == [("x", None, None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na.png,3\nb.png,-1\n", ["row 2", "negative"]),
        ("path,label\n,3\nb.png,1\n", ["row 1", "no value"]),
        ("path,label,split\na.png,3,tset\n", ["row 1", "tset", "gallery"]),
        ("path,label,split\na.png,3,train\nb.png,3,\n", ["'split'", "row 2", "no value", "leave the column out"]),
        ("where,label\na.png,3\n", ["path", "image", "--image path=COLUMN", "columns: where, label"]),
        ("path,label\n", ["t.csv", "no rows"]),
    ],
)
def test_bad_tables_are_refused_by_row(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        read_table(put(tmp_path / "t.csv", text))
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("make", "file", "old", "new", "words"),
    [
        (pictures.sop, "Ebay_train.txt", "1 1 1 bicycle", "1 1 bicycle", "Ebay_train.txt, line 2: four values"),
        (pictures.sop, "Ebay_test.txt", "image_id class_id", "id class", "first line"),
        (pictures.inshop, "Eval/list_eval_partition.txt", "7\n", "9\n", "9 images announced, 7 rows"),
        (pictures.inshop, "Eval/list_eval_partition.txt", "gallery", "galery", "line 6: expected image_name"),
        (pictures.deepfashion2, "train/annos/000001.json", '"user"', '"web"', "000001.json: expected source"),
        (pictures.deepfashion2, "train/annos/000002.json", "{", "", "no readable annotation"),
        (pictures.deepfashion2, "train/annos/000002.json", "[1, 1, 7, 9]", "[7, 1, 7, 9]", "no area"),
    ],
)
def test_damaged_lists_are_named(
    tmp_path: Path, make: Callable[[Path], Path], file: str, old: str, new: str, words: str
) -> None:
    place = make(tmp_path) / file
    place.write_text(place.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        read(tmp_path)


def test_what_is_no_image_data_set_is_said(tmp_path: Path) -> None:
    put(tmp_path / "events.csv", "user,item\n1,2\n")
    assert not is_image_source(tmp_path)
    with pytest.raises(InputError, match="Ebay_train"):
        read(tmp_path)


def test_images_are_told_from_logs(tmp_path: Path) -> None:
    assert is_image_source(pictures.sop(tmp_path / "sop"))  # its lists are text files
    assert is_image_source(pictures.folders(tmp_path / "folders"))
    assert is_image_source(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path / "folders"))
    put(tmp_path / "shop" / "events.csv", "user,item\n1,2\n")
    pictures.folders(tmp_path / "shop" / "images")
    assert not is_image_source(tmp_path / "shop")  # a log with pictures beside it
    put(tmp_path / "book" / "[Content_Types].xml", "<xml/>")
    put(tmp_path / "book" / "xl" / "media" / "logo.png", "")
    assert not is_image_source(shutil.make_archive(str(tmp_path / "book"), "zip", tmp_path / "book"))
