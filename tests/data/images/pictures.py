"""Tiny images and data sets of them in the published layouts, made by the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    """Return an image of smooth colours that depend on `seed`."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sop(root: Path) -> Path:
    """Stanford Online Products: two training classes and two test classes of two images each."""
    rows: dict[str, list[str]] = {"Ebay_train.txt": [], "Ebay_test.txt": []}
    for number in range(8):
        name, class_id = ("Ebay_train.txt", "Ebay_test.txt")[number // 4], number // 2 + 1
        kind, place = (("bicycle", 1), ("cabinet", 2))[number % 4 // 2]
        path = f"{kind}_final/11108512287{class_id}_{number % 2}.JPG"
        rows[name].append(f"{number + 1} {class_id} {place} {path}")
        put(root / path, encoded(picture(number), "JPEG"))
    for name, lines in rows.items():
        put(root / name, "\n".join(["image_id class_id super_class_id path", *lines]) + "\n")
    return root


def inshop(root: Path) -> Path:
    """In-Shop: one training item, two test items with queries and gallery images."""
    rows = []
    for number, (item, status) in enumerate(
        [(1, "train"), (1, "train"), (2, "query"), (2, "gallery"), (3, "query"), (3, "gallery"), (3, "gallery")]
    ):
        path = f"img/WOMEN/Dresses/id_{item:08d}/{number:02d}_1_front.jpg"
        rows.append(f"{path:<60} id_{item:08d} {status}")
        put(root / "Img" / path, encoded(picture(number), "JPEG"))
    header = f"{len(rows)}\nimage_name item_id evaluation_status\n"
    put(root / "Eval" / "list_eval_partition.txt", header + "\n".join(rows) + "\n")
    return root


def deepfashion2(root: Path) -> Path:
    """DeepFashion2: a pair to train on; in validation a pair of two styles, and a garment without a match."""

    def annotate(part: str, number: int, source: str, pair: int, *styles: int) -> None:
        items = {
            f"item{at}": {
                "category_name": "skirt",
                "category_id": 9,
                "style": style,
                "bounding_box": [at, 1, at + 6, 9],
            }
            for at, style in enumerate(styles, 1)
        }
        put(root / part / "image" / f"{number:06d}.jpg", encoded(picture(number + 50 * (part == "train")), "JPEG"))
        put(root / part / "annos" / f"{number:06d}.json", json.dumps({"source": source, "pair_id": pair, **items}))

    annotate("train", 1, "user", 1, 1)
    annotate("train", 2, "shop", 1, 1)
    annotate("validation", 1, "user", 1, 1, 2)
    annotate("validation", 2, "shop", 1, 1, 0)
    annotate("validation", 3, "shop", 1, 2)
    annotate("validation", 4, "user", 2, 1)
    return root


def folders(root: Path, *, classes: int = 4, each: int = 3, size: tuple[int, int] = (12, 10)) -> Path:
    """A folder of folders `class0/0.png`, …"""
    for label in range(classes):
        for number in range(each):
            put(root / f"class{label}" / f"{number}.png", encoded(picture(10 * label + number, size)))
    return root


def omniglot(root: Path, parts: tuple[str, str] = ("images_background", "images_evaluation")) -> Path:
    """Omniglot: one alphabet of two characters to train on, another to test on, one-bit images of 8 × 8."""
    for part, alphabet in zip(parts, ("Greek", "Tengwar"), strict=True):
        for character in (1, 2):
            for number in (1, 2, 3):
                image = picture(hash_of(alphabet, character, number), (8, 8), "L").point(lambda v: 255 * (v > 99))
                put(root / part / alphabet / f"character{character:02d}" / f"{number:04d}_01.png",
                    encoded(image.convert("1")))  # fmt: skip
    return root


def hash_of(alphabet: str, character: int, number: int) -> int:
    return len(alphabet) * 1000 + character * 10 + number
