"""A prepared set of images: what is in it, what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longview.cli.prepare import prepare_command
from longview.data.images import ImageSet, prepare_images
from longview.data.images.imageset import is_image_set
from longview.data.images.layouts import PUBLISHED
from longview.data.images.store import open_store
from longview.errors import InputError
from tests.data.images import pictures
from tests.data.images.pictures import encoded, picture, put


def prepare(source: Path, **options: Any) -> ImageSet:
    return prepare_images(source, out=source.parent / "data", workers=0, **options)


def test_splits_labels_and_queries(tmp_path: Path) -> None:
    images = prepare(pictures.inshop(tmp_path / "inshop"))
    assert (len(images.train), len(images.query), len(images.gallery)) == (2, 2, 3)
    assert not images.leave_one_out
    assert [images.label_names[label] for label in images.query.labels] == ["id_00000002", "id_00000003"]
    assert set(images.train.labels) == {0}  # classes of the training split come first
    assert images.query.keys[0].endswith("02_1_front.jpg")
    assert images.meta.card["queries_without_match"] == 0
    assert "others" in images.meta.card["published"]
    assert any("not comparable" in note for note in images.meta.card["notes"])


def test_every_test_image_is_query_and_gallery(tmp_path: Path) -> None:
    images = prepare(pictures.sop(tmp_path / "sop"))
    assert images.leave_one_out
    assert len(images.query) == 4
    assert images.train.categories is not None
    assert len(set(images.train.categories)) == 2


def test_deepfashion2_keeps_boxes_and_counts_queries_without_match(tmp_path: Path) -> None:
    images = prepare(pictures.deepfashion2(tmp_path / "df2"))
    assert images.meta.card["queries_without_match"] == 1
    assert images.table["box"][3].as_py() == [2, 1, 8, 9]
    assert images.reader().look([3])[0].width == 6


def test_small_images_of_one_size_are_stored_decoded(tmp_path: Path) -> None:
    images = prepare(pictures.omniglot(tmp_path / "omniglot"))
    assert images.pixels is not None
    assert images.pixels.shape == (12, 8, 8, 1)
    for row in (0, 7):
        own = pictures.Image.open(tmp_path / "omniglot" / images.table["key"][row].as_py()).convert("L")
        assert (images.pixels[row, :, :, 0] == np.asarray(own)).all()
    assert prepare_images(tmp_path / "omniglot", out=tmp_path / "big", workers=0, pixels=16).pixels is not None


def test_the_real_omniglot(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    images = prepare_images(real_data("omniglot/omniglot.zip"), out=tmp_path / "omniglot")
    for split, view in (("train", images.train), ("test", images.query)):
        assert (len(view), view.num_classes) == PUBLISHED["omniglot"][split]
    assert images.meta.card["published"] == "the same"
    assert images.pixels is not None
    assert images.pixels.shape == (32_460, 28, 28, 1)


def test_without_a_split_whole_classes_are_held_out(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures", classes=5)
    images = prepare(source, test_classes=0.4)
    assert images.query.num_classes == 2
    assert not set(images.train.labels) & set(images.query.labels)
    assert "held out" in images.meta.card["notes"][0]
    everything = prepare_images(source, out=tmp_path / "all", workers=0, test_classes=0)
    assert len(everything.train) == 15


def test_numbers_as_labels_are_ordered_by_value(tmp_path: Path) -> None:
    for label in (10, 9, 100):
        put(tmp_path / "set" / str(label) / "1.png", encoded(picture(label)))
    assert prepare(tmp_path / "set", test_classes=0).label_names == ["9", "10", "100"]


def test_workers_change_nothing(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures", classes=30, each=5)
    first = prepare_images(source, out=tmp_path / "a", workers=0)
    second = prepare_images(source, out=tmp_path / "b", workers=2)
    assert first.fingerprint == second.fingerprint
    assert first.table.equals(second.table)


def test_the_fingerprint_sees_content_and_labels(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures")
    fingerprints = {prepare(source).fingerprint}
    put(source / "class0" / "0.png", encoded(picture(999)))
    fingerprints.add(prepare(source, overwrite=True).fingerprint)
    (source / "class3").rename(source / "other")
    fingerprints.add(prepare(source, overwrite=True).fingerprint)
    assert len(fingerprints) == 3


def test_repeated_files_are_counted(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures")
    shutil.copy(source / "class0" / "0.png", source / "class1" / "again.png")
    card = prepare(source).meta.card
    assert (card["repeated_images"], card["repeated_of_other_class"]) == (1, 1)


def bad_set(root: Path) -> Path:
    """A table with good images, and one of every kind that is not."""
    good = [put(root / f"{number}.png", encoded(picture(number))).name for number in range(4)]
    put(root / "empty.png", b"")
    put(root / "cut.jpg", encoded(picture(5, (64, 64)), "JPEG")[:-300])
    put(root.parent / "outside.png", encoded(picture(6)))
    (root / "link.png").symlink_to(root.parent / "outside.png")
    bad = ["empty.png", "cut.jpg", "missing.png", "../outside.png", str(root.parent / "outside.png"), "link.png"]
    lines = [f"{name},{number % 2}" for number, name in enumerate([*good, *bad])] + ["0.png,"]
    return put(root / "list.csv", "\n".join(["path,label", *lines]) + "\n")


def test_bad_images_are_named_and_fatal(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        prepare_images(bad_set(tmp_path / "set"), out=tmp_path / "data", workers=0)
    for words in ("7 of 11 images", "empty.png (the file is empty", "list.csv, row 5", "missing.png (no such file",
                  "../outside.png (the path leaves", "bad_images=skip"):  # fmt: skip
        assert words in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_bad_images_are_skipped_and_counted_by_choice(tmp_path: Path) -> None:
    images = prepare_images(bad_set(tmp_path / "set"), out=tmp_path / "data", workers=0, bad_images="skip")
    assert len(images) == 4
    problems = images.meta.card["problems"]
    assert sum(problems.values()) == 7
    assert problems["the path leaves the folder of the images"] == 2
    assert problems["a symbolic link leads out of the folder of the images"] == 1
    assert problems["no label"] == 1


def test_paths_that_leave_the_root_are_refused_without_looking(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves the folder"):
        prepare_images(bad_set(tmp_path / "set"), out=tmp_path / "data", workers=0, check=False)


def test_archives_that_leave_their_root_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../up/a.png", encoded(picture(1)))
    with pytest.raises(InputError, match="refused"):
        prepare_images(tmp_path / "evil.zip", out=tmp_path / "data", workers=0)


def test_archives_are_refused_by_any_name_in_them(tmp_path: Path) -> None:
    for number, name in enumerate(["class0/../../up.png", "class0\\..\\..\\up.png", "!a/../../../up.png", "/up.png"]):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for key in ("!a/1.png", name, "z/1.png"):
                archive.writestr(key, encoded(picture(1)))
        with pytest.raises(InputError, match=r"refused, the archive holds '.*up\.png'"):
            prepare_images(tmp_path / f"{number}.zip", out=tmp_path / "data", workers=0)
        assert not (tmp_path / "data").exists()


def test_hidden_folders_of_an_archive_are_left_out_as_those_of_a_folder_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for key in ("a/1.png", "b/1.png", "__MACOSX/a/x/1.png", ".thumbnails/a/x/1.png"):
            archive.writestr(key, encoded(picture(len(key))))
    store = open_store(tmp_path / "set.zip")
    assert list(store.images()) == ["a/1.png", "b/1.png"]
    assert store.folders() == ["a", "b"]


def test_links_to_folders_are_refused_by_name(tmp_path: Path) -> None:
    for number, target in enumerate([tmp_path / "elsewhere", Path("class1"), Path()]):  # outside, inside, a circle
        source = pictures.folders(tmp_path / f"set{number}")
        put(tmp_path / "elsewhere" / "1.png", encoded(picture(1)))
        (source / "linked").symlink_to(target)
        with pytest.raises(InputError, match=r"linked is a symbolic link to a folder.*list its images in a table"):
            prepare(source)
    assert not (tmp_path / "data").exists()


def test_links_in_a_circle_are_bad_images(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures")
    (source / "class1" / "self.png").symlink_to("self.png")
    (source / "class1" / "good.png").symlink_to("0.png")
    with pytest.raises(InputError, match=r"1 of 14 images cannot be used: class1/self\.png \(too many levels"):
        prepare(source)
    assert len(prepare(source, bad_images="skip")) == 13


def test_a_full_disk_is_said_while_pixels_are_stored(tmp_path: Path) -> None:
    source, disk = pictures.folders(tmp_path / "pictures", classes=20, size=(64, 64)), tmp_path / "disk"
    disk.mkdir()
    own = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=200k none "$0" && exec "$@"',
        disk,
    ]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    code = (
        "import os, sys\n"
        "from longview.data.images import prepare_images\n"
        "from longview.errors import LongviewError\n"
        "source, out = sys.argv[1:]\n"
        "try:\n"
        "    prepare_images(source, out=out, workers=0)\n"
        "except LongviewError as error:\n"
        "    print(error, os.listdir(os.path.dirname(out)))\n"
    )
    done = subprocess.run(
        [*own, sys.executable, "-c", code, source, disk / "data"], check=True, capture_output=True, text=True
    )
    assert "the disk is full" in done.stdout
    assert done.stdout.endswith("[]\n")  # nothing half-written


def test_queries_without_a_match_are_noted(tmp_path: Path) -> None:
    rows = [f"{label}.png,{label},{split}" for label, split in ((0, "train"), (1, "query"), (2, "gallery"))]
    for label in range(3):
        put(tmp_path / f"{label}.png", encoded(picture(label)))
    table = put(tmp_path / "list.csv", "\n".join(["path,label,split", *rows]) + "\n")
    notes = prepare_images(table, out=tmp_path / "none", workers=0).meta.card["notes"]
    assert notes == ["no class of a query is in the gallery: every query will be a miss"]
    put(table, table.read_text() + "0.png,1,gallery\n")
    assert prepare_images(table, out=tmp_path / "one", workers=0).meta.card["notes"] == []


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable zip"):
        open_store(put(tmp_path / "cut.zip", b"PK\x03\x04 and no more"))


def test_the_set_and_its_images_move_together(tmp_path: Path) -> None:
    pictures.folders(tmp_path / "here" / "pictures")
    prepare(tmp_path / "here" / "pictures")
    (tmp_path / "here").rename(tmp_path / "there")
    images = ImageSet.open(tmp_path / "there" / "data")
    assert images.reader().look([0])[0].problem is None
    (tmp_path / "there" / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no longer there"):
        images.reader()
    assert ImageSet.open(tmp_path / "there" / "data", root=tmp_path / "elsewhere").reader().look([0])[0].width == 12


def test_nothing_is_lost(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures")
    prepare(source)
    with pytest.raises(InputError, match="already exists"):
        prepare(source)
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="holds the images"):
            prepare_images(source, out=out, overwrite=True, workers=0)
    with pytest.raises(InputError, match="not a prepared data set"):
        prepare_images(source, out=put(tmp_path / "mine" / "thesis.txt", "…").parent, overwrite=True, workers=0)


def test_damaged_sets_are_refused(tmp_path: Path) -> None:
    data = prepare(pictures.omniglot(tmp_path / "omniglot")).path
    assert is_image_set(data)
    pixels = (data / "pixels.npy").read_bytes()
    put(data / "pixels.npy", pixels[:-9])
    with pytest.raises(InputError, match=r"pixels\.npy"):
        _ = ImageSet.open(data).pixels
    meta = json.loads((data / "meta.json").read_text())
    for change, words in (({"schema_version": 9}, "schema version"), ({"num_images": 3}, "again"), ({"x": 1}, "'x'")):
        put(data / "meta.json", json.dumps(meta | change))
        with pytest.raises(InputError, match=words):
            ImageSet.open(data)
    with pytest.raises(InputError, match="longview prepare"):
        ImageSet.open(tmp_path)
    assert not is_image_set(tmp_path)


def test_the_command_knows_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pictures.omniglot(tmp_path / "omniglot")
    prepare_command([str(source)], tmp_path / "data", image_options=["workers=0"])
    printed = capsys.readouterr()
    for words in ("6 images of 2 classes", "decoded, 8 × 8 pixels, grey", "published counts", "longview train"):
        assert words in printed.out
    assert "note: the published data set has other counts" in printed.err
    table = bad_set(tmp_path / "set")
    prepare_command(
        [str(table)], tmp_path / "t", images=True, image_options=["workers=0", "bad_images=skip"], json=True
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out)["card"]["images"] == 4
    assert printed.err == ""


def test_a_table_of_one_column_is_told_what_images_need(tmp_path: Path) -> None:
    table = put(tmp_path / "list.csv", "path\na.png\nb.png\n")
    with pytest.raises(InputError, match=r"list\.csv: one column only \('path'\).* images a path and a label"):
        prepare_command([str(table)], tmp_path / "data", images=True, image_options=["workers=0"])


def test_options_of_logs_are_not_of_images(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "pictures")
    with pytest.raises(InputError, match="--user is of logs"):
        prepare_command([str(source)], tmp_path / "data", user="u")
    with pytest.raises(InputError, match=r"test_clases.*did you mean 'test_classes'"):
        prepare_command([str(source)], tmp_path / "data", image_options=["test_clases=0.5"])
    with pytest.raises(InputError, match="root is an option of tables"):
        prepare_command([str(source)], tmp_path / "data", image_options=[f"root={tmp_path}", "workers=0"])
