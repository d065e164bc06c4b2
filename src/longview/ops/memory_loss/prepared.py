# mypy: disable-error-code="no-untyped-call"
"""The launches of one memory loss, for inputs of certain shapes: what its kernels read and leave, and in which order.

The anchors are sorted, the memory's labels matched with theirs, the memory walked over, and the sums joined. A memory
that is only mapped (moment matching) is read as it is stored, and the map is applied to the anchors. One whose rows are
divided by their norms as well is written out as it is seen, `SEEN_BYTES` at a time, and read like any other: for narrow
rows that takes less time than to divide every similarity. Only the positives, which are few, are still read as stored
where one piece does not hold all rows. Rows of `RAW_WIDTH` are always read as stored: so much work follows for each
similarity that the division is the least of it.

Shapes: n anchors, m rows of the memory, d width, S splits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from longview.ops.kernels import padded_dim
from longview.ops.launch import Recipe, Step, firsts_of
from longview.ops.memory_loss import triton_finish, triton_match, triton_walk, walk_tiles
from longview.ops.memory_loss.cases import Case, Walk
from longview.ops.memory_loss.forms import Form
from longview.ops.softmax_loss.numerics import LOG2_E

PROCESSORS = 132  # multiprocessors of an H100 or H200; fixed, so that bits do not depend on the device
PARTIALS = 14 << 20  # bytes of partial gradients of both walks together, or as many as LEAST_SPLITS take
LEAST_SPLITS = 12
POSITIVE_SLOTS = 8
RAW_WIDTH = 512  # from here on, similarities are divided by the norms of rows, and not the rows
SHARE = 2  # splits of a walk that add their gradients in one slot
PREPARED = 16  # anchors that a program prepares
SEEN_BYTES = 64 << 20  # of the memory's rows that are held as they are seen, once they are divided by their norms

# `value` is the reduced loss, or the losses of all anchors where nothing reduces them.
INPUTS = ("embeddings", "memory", "scale", "shift", "labels", "own_ids", "own_rows", "reference_labels",
          "reference_ids", "taken", "value", "grads")  # fmt: skip
POWERS = ("power", "circle")
Buffers = dict[str, tuple[torch.dtype, int]]


class Prepared:
    """The buffers and steps of one loss; `recipe` is what is run.

    Attributes:
        affine, norm: what is left to the walks over rows as they are stored: the map, and to divide by norms.
        held: rows that are written out as they are seen; with `pieced` these are not all.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.wide = case.memory not in (torch.bfloat16, torch.float16)
        padded = padded_dim(case.width)
        self.tile, self.per_processor = case.tile or walk_tiles.tile_for(padded, self.wide)
        self.sizes = {"WIDTH": case.width, "PADDED": padded}
        self.early = {"launch_pdl": True} if case.early else {}
        self.blocks = -(-case.n // self.tile.rows)
        self.blocks_per_bit = 1 << (-(-self.blocks // triton_match.BITS) - 1).bit_length()
        self.tiles = -(-case.m // self.tile.items)
        self.segment = triton_match.BLOCK
        while self.segment * triton_match.SEGMENTS < case.m:
            self.segment *= 2
        self.segments = max(1, -(-case.m // self.segment))
        row_bytes = case.width * case.memory.itemsize
        raw = case.divided and padded >= RAW_WIDTH
        self.pieced = case.divided and not raw and case.m * row_bytes > SEEN_BYTES
        self.norm = raw or self.pieced  # else nothing is left to the walks
        self.mapped = case.mapped is not None
        self.affine = self.mapped and (self.norm or not case.divided)
        each = SEEN_BYTES // (row_bytes * self.tile.items)
        self.per_piece = max(1, min(each, self.tiles) if self.pieced else self.tiles)  # tiles
        self.held = min(case.m, self.per_piece * self.tile.items) * (case.divided and not raw)
        self.norms = max(1, triton_match.NORM_VALUES // padded)  # rows that a program divides
        self.to_see = -(-self.tiles * self.tile.items // self.norms) * case.divided  # programs
        self.negatives, self.positives = self._split()
        self.buffers = self._buffers()
        self.recipe = Recipe(INPUTS, self.buffers, [self._prepare(), self._match(), *self._walks(), self._finish()])

    def _split(self) -> tuple[Walk, Walk]:
        """Return the walks over negatives and positives, with enough splits to fill the device in PARTIALS bytes."""
        case, plan = self.case, self.case.plan
        most = max(LEAST_SPLITS, PARTIALS // (4 * case.n * case.width))  # slots of both
        share = 1 if self.pieced else SHARE
        wanted = max(1, min(PROCESSORS * self.per_processor // self.blocks, share * (most - 2)))
        tiles = -(-self.per_piece // wanted)
        negatives = Walk(plan.negatives, "negative", -(-self.per_piece // tiles), tiles * self.tile.items, share)
        # Each split of positives has an exponent of its own.
        share = 1 if plan.positives.sums in POWERS else SHARE
        segments = -(-self.segments // (share * min(POSITIVE_SLOTS, most - negatives.slots)))
        splits = -(-self.segments // segments)
        return negatives, Walk(plan.positives, "positive", splits, segments * self.segment, share)

    def _buffers(self) -> Buffers:
        """Return all buffers; those that begin with zeros are neighbours."""
        case, (n, m, d) = self.case, self.case[:3]
        ids, positions, int32, int64, float32 = case.ids, case.positions, torch.int32, torch.int64, torch.float32
        buffers: Buffers = {
            "order": (int32, n), "own_codes": (int32, n), "ends": (int32, n), "own_id_codes": (int32, n * ids),
            "own_places": (int32, n * positions), "codes": (int32, m), "rows": (int32, m), "id_codes": (int32, m * ids),
            "counts": (int32, self.segments), "ordered_labels": (int64, n), "ordered_ids": (int64, n * ids),
            "ordered_rows": (int64, n * positions), "words": (int64, self.tiles),
            "segment_words": (int64, self.segments), "constants": (float32, n * self.affine),
            "inverses": (float32, self.to_see * self.norms), "queries": (case.memory, n * d),
            "plain": (case.memory, n * d * (self.pieced and self.affine)),
            "seen": (case.memory, self.held * d),
        }  # fmt: skip
        if case.reduction != "none":
            buffers["losses"] = float32, n
        if case.reduction == "apart":
            buffers["scales"] = float32, 2
        zeros: Buffers = {"arrived": (int32, 1)}
        for walk in (self.negatives, self.positives):
            size, best = walk.splits * n, walk.form.sums == "best"
            gradient = case.gradient and not best
            first, second, third, mass, grads = walk.sums()
            buffers[first] = float32, size
            buffers[second] = int32 if best else float32, size
            buffers[third] = float32, size * (walk.form.sums == "pull")
            buffers[mass] = float32, size * (gradient and self.affine)
            (zeros if walk.share > 1 else buffers)[grads] = float32, walk.slots * n * d * gradient
            zeros[f"{walk.side} wrongs"] = int32, walk.slots * self.blocks * restarts(walk.form)
        self.zeros = firsts_of(zeros)[""] // 4  # values
        return buffers | zeros

    def _prepare(self) -> Step:
        """Sort the anchors, and make their queries and codes."""
        case = self.case
        return Step(
            triton_match.prepare_anchors, (-(-case.n // PREPARED), 1),
            ("embeddings", "labels", "own_ids", "own_rows", "scale", "shift", "ordered_labels", "ordered_ids",
             "ordered_rows", "order", "queries", "plain", "constants", "own_codes", "ends", "own_id_codes",
             "own_places"),
            (case.n,),
            {"IDS": case.ids, "ROWS_OUT": case.positions, "AFFINE": self.affine, "PLAIN": self.pieced,
             "COLUMNS": triton_match.COLUMNS, "ROWS": PREPARED, "EARLY": case.early, **self.sizes},
            maxnreg=triton_match.SORT_REGISTERS,
        )  # fmt: skip

    def _match(self) -> Step:
        """Make the codes of the memory's rows, the lists of possible positives, the words of tiles and segments; where
        rows are divided by their norms, 1 / these, and the first rows as they are seen, as many as are held.
        """
        case = self.case
        # The interpreter of the tests takes its time for every row of a block.
        block = min(triton_match.BLOCK, max(self.tile.items, 1 << max(0, case.m - 1).bit_length()))
        others = -(-self.zeros // triton_match.ZEROED) + self.to_see
        return Step(
            triton_match.match_rows, (self.segments + others, 1),
            ("reference_labels", "reference_ids", "taken", "ordered_labels", "ordered_ids", "ordered_rows", "ends",
             "codes", "id_codes", "rows", "counts", "words", "segment_words", "memory", "scale", "shift", "inverses",
             "seen", "arrived"),
            (case.m, case.n, (self.blocks_per_bit * self.tile.rows).bit_length() - 1, self.segments, self.held,
             self.zeros),
            {"IDS": case.ids, "ROWS_OUT": case.positions, "MASKED": case.masked, "AFFINE": self.mapped,
             "NORM": case.divided, "STEPS": case.n.bit_length(), "SEGMENT": self.segment, "BLOCK": block,
             "ITEMS": self.tile.items, "NORMS": self.norms, "ZEROS": triton_match.ZEROED, "EARLY": case.early,
             **self.sizes},
            num_warps=triton_match.WARPS, maxnreg=triton_match.REGISTERS, **self.early,
        )  # fmt: skip

    def _walks(self) -> Iterator[Step]:
        """Sum over both kinds of pairs, in the order in which the loss needs them."""
        negatives, positives = self.negatives, self.positives
        if self.case.plan.positives_first:
            yield from self._walk(positives, positives, 1, alongside=False)
            yield from self._walk(negatives, positives, positives.form.sign, alongside=False)
        else:
            yield from self._walk(negatives, negatives, 1, alongside=False)
            yield from self._walk(positives, negatives, 1, alongside=positives.form.sums != "pull")

    def _walk(self, walk: Walk, before: Walk, given_sign: int, *, alongside: bool) -> Iterator[Step]:
        """Sum what a walk's form says of its pairs; `before` is the other walk, where that came first."""
        case, form = self.case, walk.form
        gather = form.pairs == "positive"
        seen = self.pieced and not gather
        pieces = range(0, max(1, self.tiles), self.per_piece) if seen else range(1)
        queries = "plain" if seen and self.affine else "queries"
        memory = "seen" if seen or (case.divided and not self.norm) else "memory"
        # The number of pairs over a margin is also the sum of their weights, but for rows that are divided by norms.
        count = case.reduction == "apart" or not self.norm or seen
        early = case.early and walk_tiles.may_begin_early(form.sums, self.sizes["PADDED"], self.wide)
        for redo, piece in itertools.product((False, True) if restarts(form) else (False,), pieces):
            if len(pieces) > 1 and (redo or piece > 0):
                yield self._copy(piece, walk, redo)
            yield Step(
                triton_walk.walk, (self.blocks, walk.splits),
                (queries, memory, "own_codes", "codes", "own_id_codes", "id_codes", "own_places", "inverses",
                 "constants", "rows", "counts", "words", "segment_words", *before.sums()[:2], *walk.sums(),
                 f"{walk.side} wrongs"),
                (case.n, self.held if seen and piece == 0 else case.m, walk.each, piece, self.per_piece, before.splits,
                 self.blocks_per_bit, form.factor * LOG2_E, form.u, form.v, float(given_sign)),
                {"FORM": form.sums, "PAIRS": form.pairs, "SIGN": form.sign,
                 "LESS": form.sums == "best" and not gather and before is not walk, "GATHER": gather, "REDO": redo,
                 "PIECES": piece > 0, "SHARE": walk.share, "IDS": case.ids, "ROWS_OUT": case.positions,
                 "AFFINE": self.affine and not seen, "NORM": self.norm and not seen, "COUNT": count,
                 "GRAD": self.buffers[walk.sums()[-1]][1] > 0, "EARLY": early, "ALONGSIDE": alongside,
                 "SEGMENT": self.segment, "ROWS": self.tile.rows,
                 "ITEMS": min(self.tile.items, walk_tiles.LISTED) if gather else self.tile.items, **self.sizes},
                **walk_tiles.options(self.tile, self.per_processor, gather), **(self.early if early else {}),
            )  # fmt: skip

    def _copy(self, piece: int, walk: Walk, redo: bool) -> Step:
        """Hold the rows from tile `piece` on as they are seen."""
        first = piece * self.tile.items
        held = min(self.held, self.case.m - first)
        wrongs = f"{walk.side} wrongs"
        return Step(
            triton_match.copy_rows, (-(-held // self.norms), 1),
            ("memory", "scale", "shift", "seen", wrongs),
            (self.case.m, first, held, self.buffers[wrongs][1]),
            {"AFFINE": self.mapped, "REDO": redo, "NORMS": self.norms, "EARLY": self.case.early, **self.sizes},
            **self.early,
        )  # fmt: skip

    def _finish(self) -> Step:
        """Join the splits of both walks into losses and gradients."""
        case, plan, (negatives, positives) = self.case, self.case.plan, (self.negatives, self.positives)
        dims = min(triton_finish.DIMS, self.sizes["PADDED"])
        apart = case.reduction == "apart"
        losses = "value" if case.reduction == "none" else "losses"
        return Step(
            triton_finish.finish, (-(-case.n // triton_finish.ROWS), -(-case.width // dims)),
            (*positives.sums(), *(name for name in negatives.sums() if not name.endswith("third")), "order",
             "seen" if case.divided and not self.norm else "memory", "inverses", "scale", "shift",
             "scales" if apart else losses, losses, "value", "arrived", "grads"),
            (case.n, positives.splits, negatives.splits, plan.rate_p, plan.rate_n, plan.margin,
             float(plan.positives.sign), 1 / case.n if case.reduction == "mean" else 1.0),
            {"KIND": plan.kind, "APART": apart, "AFFINE": self.affine, "NORM": self.norm, "SEEN": self.pieced,
             "POSITIVE_SHARE": positives.share, "SHARE": negatives.share, "TOTAL": case.reduction != "none",
             "GRAD": case.gradient, "EARLY": case.early and not apart, "ROWS": triton_finish.ROWS, "DIMS": dims,
             "WIDTH": case.width},
            **({} if apart else self.early),
        )  # fmt: skip


@functools.lru_cache(maxsize=256)
def prepared_for(case: Case) -> Prepared:
    """Return the launches of a case, made once for each."""
    return Prepared(case)


def restarts(form: Form) -> bool:
    """Return whether a walk takes powers relative to a first guess, and may have to do so again."""
    return form.sums in POWERS and form.pairs != "positive"
