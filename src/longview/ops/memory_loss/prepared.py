# mypy: disable-error-code="no-untyped-call"
"""What the kernels of a memory loss read, made for each loss: sorted anchors, codes, lists, norms, and room for sums.

A memory that is only mapped (moment matching) is read as it is stored, and the map is applied to the anchors. One whose
rows are divided by their norms as well is written out as it is seen, `SEEN_BYTES` at a time, and read like any other:
for narrow rows that takes less time than to divide every similarity. Only the positives, which are few, are still read
as stored where one piece does not hold all rows. Rows of `RAW_WIDTH` are always read as stored: so much work follows
for each similarity that the division is the least of it.

Shapes: n anchors, m rows of the memory, d width, S splits.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from longview.ops.kernels import padded_dim
from longview.ops.launch import Place, alignment, launch, places
from longview.ops.memory_loss import triton_match, triton_walk
from longview.ops.memory_loss.forms import Form, Plan
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.softmax_loss.triton_tile import Tile

PROCESSORS = 132  # multiprocessors of an H100 or H200; fixed, so that bits do not depend on the device
PARTIALS = 14 << 20  # bytes of partial gradients of both walks together, or as many as LEAST_SPLITS take
LEAST_SPLITS = 12
POSITIVE_SPLITS = 8
RAW_WIDTH = 512  # from here on, similarities are divided by the norms of rows, and not the rows
SHARE = 2  # splits of the negatives' walk that add their gradients in one slot
PREPARED = 16  # anchors that a program prepares
SEEN_BYTES = 64 << 20  # of the memory's rows that are held as they are seen, once they are divided by their norms


class Walk(NamedTuple):
    """What a walk leaves: sums of each split, (S * n,), and gradients of each slot, (slots * n * d,)."""

    splits: int
    each: int  # rows of the memory a split
    share: int  # splits of a slot
    first: Place
    second: Place
    third: Place
    mass: Place
    grads: Place
    wrongs: Place


class Prepared:
    """Operands of one loss, in the form the kernels take; the anchors in the order of their labels.

    Attributes:
        seen: rows of the memory as they are seen, the first `held` of them; with `pieced` these are not all.
        affine, norm: what is left to the walks over rows as they are stored: the map, and to divide by norms.
    """

    def __init__(
        self,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        view: View,
        plan: Plan,
        tile: tuple[Tile, int] | None,
        gradient: bool,
    ) -> None:
        wide = reference.dtype not in (torch.bfloat16, torch.float16)
        self.embeddings, self.memory = embeddings.contiguous(), reference.contiguous()
        if wide:
            self.memory = self.memory.float()
        self.n, self.width = embeddings.shape
        self.m = len(reference)
        self.pairs, self.plan, self.gradient = pairs, plan, gradient
        padded = padded_dim(self.width)
        self.tile, self.per_processor = tile or triton_walk.tile_for(padded, wide)
        self.sizes = {"WIDTH": self.width, "PADDED": padded}
        self.blocks = -(-self.n // self.tile.rows)
        self.blocks_per_bit = 1 << (-(-self.blocks // triton_match.BITS) - 1).bit_length()
        self.mapped, self.divided = view.scale is not None, view.renormalise
        raw = self.divided and padded >= RAW_WIDTH
        self.pieced = self.divided and not raw and self.memory.nbytes > SEEN_BYTES
        self.norm = raw or self.pieced  # else nothing is left to the walks
        self.ids, self.rows_out = pairs.own_ids is not None, pairs.own_positions is not None
        self.scale = self.shift = self.embeddings
        if view.scale is not None and view.shift is not None:
            self.scale, self.shift = view.scale.contiguous(), view.shift.contiguous()
        user = (self.embeddings, self.memory, self.scale, self.shift)
        self.name = tuple((tensor.dtype, alignment(tensor)) for tensor in user)
        self.segment = triton_match.BLOCK
        while self.segment * triton_match.SEGMENTS < self.m:
            self.segment *= 2
        self.segments, self.tiles = max(1, -(-self.m // self.segment)), -(-self.m // self.tile.items)
        each = SEEN_BYTES // (self.width * self.memory.element_size() * self.tile.items)
        self.per_piece = max(1, min(each, self.tiles) if self.pieced else self.tiles)  # tiles
        self.held = min(self.m, self.per_piece * self.tile.items) * (self.divided and not raw)
        self.affine = self.mapped and (self.norm or not self.divided)
        self.norms = max(1, triton_match.NORM_VALUES // padded)
        self.to_see = -(-self.m // self.norms) * self.divided  # programs, a third of them while the anchors are sorted
        self.seen_before = self.to_see // 3
        self._allocate()
        self._prepare()
        self._match()
        if self.divided and not self.norm:
            self.memory = self.seen

    def _allocate(self) -> None:
        """Make all buffers: two allocations, of which the second is for rows as they are seen."""
        n, m, ids = self.n, self.m, self.ids
        int32, int64, float32 = torch.int32, torch.int64, torch.float32
        small = (n, n, n, n * ids, n * self.rows_out, m, m, m * ids, self.segments)
        large = (n, n * ids, n * self.rows_out, self.tiles, self.segments)
        rows = (n * self.width, n * self.width * (self.pieced and self.affine))
        negatives, positives = self._split()
        found = iter(places(self.memory.device, (
            *((int32, size) for size in small), *((int64, size) for size in large),
            (float32, n * self.affine), (float32, m * self.divided), *((self.memory.dtype, size) for size in rows),
            *self._of_walk(self.plan.negatives, negatives[0], negatives[2]),
            *self._of_walk(self.plan.positives, positives[0], positives[2]),
        )))  # fmt: skip
        (self.order, self.own_codes, self.ends, self.own_ids, self.own_rows, self.codes, self.rows, self.row_ids,
         self.counts) = islice(found, len(small))  # fmt: skip
        *self.ordered, self.words, self.segment_words = islice(found, len(large))
        self.constants, self.inverses, self.queries, self.plain = islice(found, 4)
        if not self.plain.size:
            self.plain = self.queries
        self.negatives, self.positives = Walk(*negatives, *islice(found, 6)), Walk(*positives, *islice(found, 6))
        self.seen = self.memory.new_empty((self.held, self.width)) if self.held else self.memory

    def _split(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return (splits, rows of the memory a split, splits of a slot) of the walks over negatives and positives.

        There are enough to fill the device, within the bytes of PARTIALS.
        """
        most = max(LEAST_SPLITS, PARTIALS // (4 * self.n * self.width))  # slots of both
        share = 1 if self.pieced else SHARE
        wanted = max(1, min(PROCESSORS * self.per_processor // self.blocks, share * (most - 2)))
        tiles = -(-self.per_piece // wanted)
        splits = -(-self.per_piece // tiles)
        segments = -(-self.segments // min(POSITIVE_SPLITS, most - -(-splits // share)))
        listed = -(-self.segments // segments), segments * self.segment, 1
        return (splits, tiles * self.tile.items, share), listed

    def _of_walk(self, form: Form, splits: int, share: int) -> list[tuple[torch.dtype, int]]:
        """Return what a `Walk` holds."""
        size, slots, float32 = splits * self.n, -(-splits // share), torch.float32
        gradient = self.gradient and form.sums != "best"
        return [
            (float32, size),
            (torch.int32 if form.sums == "best" else float32, size),
            (float32, size * (form.sums == "pull")),
            (float32, size * (gradient and self.affine)),
            (float32, slots * self.n * self.width * gradient),
            (torch.int32, slots * self.blocks * restarts(form)),
        ]

    def _prepare(self) -> None:
        """Sort the anchors, and make their queries and codes."""
        labels = self.pairs.labels.contiguous()
        ids, rows = (labels if t is None else t.contiguous() for t in (self.pairs.own_ids, self.pairs.own_positions))
        programs = -(-self.n // PREPARED)
        launch(
            triton_match.prepare_anchors, (programs + self.seen_before, 1),
            (self.name, alignment(labels), alignment(ids), alignment(rows)),
            (self.embeddings, labels, ids, rows, self.scale, self.shift, *self.ordered, self.order,
             self.queries, self.plain, self.constants, self.own_codes, self.ends, self.own_ids, self.own_rows,
             self.memory, self.inverses, self.seen, self.n, programs, self.m, self.held),
            {"IDS": self.ids, "ROWS_OUT": self.rows_out, "AFFINE": self.affine, "PLAIN": self.pieced,
             "MAPPED": self.mapped, "NORM": self.divided, "COLUMNS": triton_match.COLUMNS, "ROWS": PREPARED,
             "NORMS": self.norms, **self.sizes},
            maxnreg=triton_match.SORT_REGISTERS,
        )  # fmt: skip

    def _match(self) -> None:
        """Make the codes of the memory's rows, the lists of possible positives, the words of tiles and segments; where
        rows are divided by their norms, 1 / these, and the first rows as they are seen, as many as are held.
        """
        pairs, m = self.pairs, self.m
        # The interpreter of the tests takes its time for every row of a block.
        block = min(triton_match.BLOCK, max(self.tile.items, 1 << max(0, m - 1).bit_length()))
        labels, mask = pairs.reference_labels.contiguous(), pairs.reference_mask
        ids = labels if pairs.reference_ids is None else pairs.reference_ids.contiguous()
        taken = labels if mask is None else mask.contiguous().view(torch.uint8)
        zeros = self._zeros()
        others = -(-zeros.size // triton_match.NORM_VALUES) + self.to_see - self.seen_before
        launch(
            triton_match.match_rows, (self.segments + others, 1),
            (self.name, alignment(labels), alignment(ids), alignment(taken)),
            (labels, ids, taken, *self.ordered, self.ends, self.codes, self.row_ids, self.rows, self.counts,
             self.words, self.segment_words, self.memory, self.scale, self.shift, self.inverses, self.seen, zeros,
             m, self.n, (self.blocks_per_bit * self.tile.rows).bit_length() - 1, self.segments, self.seen_before,
             self.held, zeros.size),
            {"IDS": self.ids, "ROWS_OUT": self.rows_out, "MASKED": mask is not None,
             "AFFINE": self.mapped, "NORM": self.divided, "STEPS": self.n.bit_length(),
             "SEGMENT": self.segment, "BLOCK": block, "ITEMS": self.tile.items, "NORMS": self.norms,
             "ZEROS": triton_match.NORM_VALUES, **self.sizes},
            num_warps=triton_match.WARPS, maxnreg=triton_match.REGISTERS,
        )  # fmt: skip

    def _zeros(self) -> Place:
        """Return what the negatives' walk wants to begin with zeros: slots that it adds to, and `wrongs` after them."""
        walk, wrongs = self.negatives, self.negatives.wrongs
        first = walk.grads.first if walk.share > 1 else wrongs.first
        size = (wrongs.first - first) // 4 + wrongs.size
        return Place(wrongs.pointer - wrongs.first + first, wrongs.whole, torch.float32, first, size)


def restarts(form: Form) -> bool:
    """Return whether a walk takes powers relative to a first guess, and may have to do so again."""
    return form.sums in ("power", "circle") and form.pairs != "positive"
