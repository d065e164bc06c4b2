"""What the kernels of the memory losses are compiled with, for checks that need no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longview.ops.memory_loss.forms import Sums
from longview.ops.memory_loss.pairs import Kind
from longview.ops.memory_loss.prepared import POWERS, RAW_WIDTH, SHARE
from longview.ops.memory_loss.triton_finish import DIMS, finish
from longview.ops.memory_loss.triton_finish import ROWS as FINISHED
from longview.ops.memory_loss.triton_match import (
    BLOCK,
    COLUMNS,
    NORM_VALUES,
    REGISTERS,
    SORT_REGISTERS,
    WARPS,
    ZEROED,
    copy_rows,
    match_rows,
    prepare_anchors,
)
from longview.ops.memory_loss.triton_walk import walk
from longview.ops.memory_loss.walk_tiles import LISTED, TILES, may_begin_early, options

Shipped = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]
FORMS: tuple[tuple[Sums, Kind, int], ...] = (  # as `forms.plan_of` makes them: sums, pairs, sign
    ("margin", "negative", 1),
    ("power", "negative", 1),
    ("power", "all", 1),
    ("circle", "negative", 1),
    ("best", "negative", 1),
    ("margin", "positive", -1),
    ("power", "positive", -1),
    ("pull", "positive", 1),
    ("mean", "positive", 1),
    ("circle", "positive", -1),
    ("best", "positive", -1),
)
EVERYWHERE = FORMS[0], FORMS[1], FORMS[6]  # at every width, where the others are compiled for one
KINDS = ("contrastive", "triplet", "multi-similarity", "info-nce", "supervised-contrastive", "circle")
POINTERS = {
    "queries": "*bf16", "memory": "*bf16", "words": "*i64", "segment_words": "*i64", "labels": "*i64", "taken": "*u8",
    "ordered_labels": "*i64", "ordered_ids": "*i64", "ordered_rows": "*i64", "own_codes": "*i32", "codes": "*i32",
    "id_codes": "*i32", "rows": "*i32", "counts": "*i32", "ends": "*i32", "order": "*i32",
    "wrongs": "*i32", "arrived": "*i32", "zeros": "*i32", "seen": "*bf16", "plain": "*bf16",
}  # fmt: skip
IN_WALK = {"own_ids": "*i32", "ids": "*i32", "own_rows": "*i32"}  # codes there, and what they stand for before
BEFORE = {"own_ids": "*i64", "ids": "*i64", "own_rows": "*i64"}
NUMBERS = ("factor", "u", "v", "given_sign", "rate_p", "rate_n", "margin", "sign", "weight")
COUNTS = ("n", "m", "b", "per_split", "piece", "per_piece", "first", "held", "number",
          "given_splits", "blocks_per_bit", "per_bit", "segments", "positive_splits", "negative_splits")  # fmt: skip


def shipped() -> list[Shipped]:
    """Return (name, kernel, signature, constants, options) of each, as `tests/ops/offline.py` compiles them."""
    return list(_shipped())


def _shipped() -> Iterator[Shipped]:
    for view in (False, True):
        for width in TILES:
            yield from (of_walk(form, width, view) for form in FORMS if width == 128 or form in EVERYWHERE)
            if view:
                yield from _of_norms(width)
        yield from (of_finish(kind, 128, view) for kind in KINDS)
        yield from (of_match(width, view) for width in (128, 512))
        yield from (of_anchors(width, view) for width in (128, 512))
    yield from (of_copy(width) for width in (128, 512))


def _of_norms(width: int) -> Iterator[Shipped]:
    """Return the walks over negatives of a memory whose rows are divided by their norms, too."""
    if width < RAW_WIDTH:
        yield from (of_walk(form, width, True, "piece, ") for form in EVERYWHERE if form[1] != "positive")
    else:
        yield from (of_walk(form, width, True, "raw, ") for form in FORMS if form[1] != "positive")


def of_walk(form: tuple[Sums, Kind, int], width: int, view: bool, divided: str = "") -> Shipped:
    """Return a walk over a memory as it is; with `view` with moment matching, and over positives with norms, too.

    Negatives are `divided` by norms as a `piece` of rows as they are seen, or as `raw` rows.
    """
    sums, pairs, sign = form
    tile, per_processor = TILES[width]
    best, gather, piece = sums == "best", pairs == "positive", divided == "piece, "
    norm = view and (gather or divided == "raw, ")
    constants = {
        "FORM": sums, "PAIRS": pairs, "SIGN": sign, "LESS": best and not gather, "GATHER": gather, "REDO": False,
        "PIECES": piece, "SHARE": 1 if piece or (gather and sums in POWERS) else SHARE,
        "IDS": False, "ROWS_OUT": False, "AFFINE": view and not piece, "NORM": norm,
        "COUNT": not norm, "GRAD": not best,
        "EARLY": may_begin_early(sums, width, wide=False), "ALONGSIDE": gather and sums != "pull",
        "SEGMENT": BLOCK, "ROWS": tile.rows, "ITEMS": min(tile.items, LISTED) if gather else tile.items,
        "WIDTH": width, "PADDED": width,
    }  # fmt: skip
    rows = {"seconds_Sn": "*i32", "given_second": "*i32"} if best else {}
    named = {**IN_WALK, **rows}
    return _one(
        f"{divided}walk {sums} {pairs}",
        view,
        walk,
        constants,
        named,
        options(tile, per_processor, gather),
    )


def of_finish(kind: str, width: int, view: bool) -> Shipped:
    """Return the kernel that joins the splits of one loss."""
    constants = {
        "KIND": kind, "APART": kind == "contrastive", "AFFINE": view, "NORM": view, "SEEN": view,
        "POSITIVE_SHARE": SHARE, "SHARE": SHARE, "TOTAL": True, "GRAD": True, "EARLY": True,
        "ROWS": FINISHED, "DIMS": min(DIMS, width), "WIDTH": width,
    }  # fmt: skip
    rows = {"pos_second": "*i32", "neg_second": "*i32"} if kind == "triplet" else {}
    return _one(f"finish {kind}", view, finish, constants, rows)


def of_match(width: int, view: bool) -> Shipped:
    """Return the kernel that matches the memory's labels and makes its norms."""
    constants = {
        "IDS": False, "ROWS_OUT": False, "MASKED": False, "AFFINE": view, "NORM": view, "STEPS": 9,
        "SEGMENT": 4 * BLOCK, "BLOCK": BLOCK, "ITEMS": TILES[width][0].items, "NORMS": NORM_VALUES // width,
        "ZEROS": ZEROED, "EARLY": True, "WIDTH": width, "PADDED": width,
    }  # fmt: skip
    return _one("match", view, match_rows, constants, BEFORE, {"num_warps": WARPS, "maxnreg": REGISTERS})


def of_copy(width: int) -> Shipped:
    """Return the kernel that makes a piece of rows as they are seen."""
    constants = {"AFFINE": True, "REDO": True, "NORMS": NORM_VALUES // width, "EARLY": True, "WIDTH": width,
                 "PADDED": width}  # fmt: skip
    return _one("copy", True, copy_rows, constants, {})


def of_anchors(width: int, view: bool) -> Shipped:
    """Return the kernel that sorts the anchors."""
    constants = {"IDS": False, "ROWS_OUT": False, "AFFINE": view, "PLAIN": view, "COLUMNS": COLUMNS,
                 "ROWS": 16, "EARLY": True, "WIDTH": width, "PADDED": width}  # fmt: skip
    return _one("anchors", view, prepare_anchors, constants, {**BEFORE, "rows": "*i32"}, {"maxnreg": SORT_REGISTERS})


def _one(
    name: str,
    view: bool,
    kernel: Any,
    constants: dict[str, Any],
    named: dict[str, str],
    how: dict[str, int] | None = None,
) -> Shipped:
    types = {**POINTERS, **dict.fromkeys(NUMBERS, "fp32"), **dict.fromkeys(COUNTS, "i32"), **named}
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names if argument not in constants}
    title = f"{'view, ' if view else ''}{name}, {constants['WIDTH']}"
    return title, kernel, signature, constants, how or {}
