# mypy: disable-error-code="index, no-untyped-call"
"""The memory losses on a GPU: what the kernels of `triton_match`, `triton_walk` and `triton_finish` are launched with.

Losses and gradients are made together in the forward pass; the backward pass multiplies. Bits do not depend on the
run: every sum has one order, and splits are joined in theirs.

A memory that is only mapped (moment matching) is read as it is stored, and the map is applied to the anchors. One whose
rows are divided by their norms as well is written out as it is seen, `SEEN_BYTES` at a time, and read like any other:
that takes less time than to divide every similarity. Only the positives, which are few, are still read as stored where
one piece does not hold all rows.

Shapes: b anchors, m rows of the memory, d width, S splits.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.ops.kernels import on_device_of, padded_dim
from longview.ops.launch import alignment, launch
from longview.ops.memory_loss import triton_finish, triton_match, triton_walk
from longview.ops.memory_loss.forms import Form, Plan, plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.softmax_loss.numerics import refuse_second_derivative
from longview.ops.softmax_loss.triton_tile import LOG2_E, Tile

PROCESSORS = 132  # multiprocessors of an H100 or H200; fixed, so that bits do not depend on the device
PARTIALS = 14 << 20  # bytes of partial gradients of all splits together, or as many as LEAST_SPLITS take
LEAST_SPLITS = 12
POSITIVE_SPLITS = 8
PREPARED = 16  # anchors that a program prepares
SEEN_BYTES = 64 << 20  # of the memory's rows that are held as they are seen, once they are divided by their norms


class FusedMemoryLoss(torch.autograd.Function):
    """`apply(embeddings, reference, pairs, loss, view, reduction, tile)` → a scalar, or losses of the anchors (b,).

    `reduction`: `mean`, `sum`, `apart` (the contrastive loss over active pairs) or `none`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        loss: PairLoss,
        view: View,
        reduction: str,
        tile: tuple[Tile, int] | None,
    ) -> Tensor:
        """Return the losses of the anchors (b,), and keep their gradient (b, d), made on the way."""
        with on_device_of(reference):
            plan = plan_of(loss)
            problem = _Problem(embeddings, reference, pairs, view, plan, tile)
            losses, grads = problem.solve(plan, reduction, ctx.needs_input_grad[0])
        ctx.save_for_backward(grads)
        if reduction == "none":
            return losses
        return losses.mean() if reduction == "mean" else losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (own,) = ctx.saved_tensors
        if own is None:
            return (None,) * 7
        given = grads[0] if grads[0].dim() == 0 else grads[0].to(own.dtype)[:, None]
        return own * given, None, None, None, None, None, None


class _Walk(NamedTuple):
    """What a walk leaves: sums of each split, (S * n,) and some room after them, and gradients (S * n * d,)."""

    splits: int
    first: Tensor
    second: Tensor
    third: Tensor
    mass: Tensor
    grads: Tensor


class _Problem:
    """Operands of one loss, in the form the kernels take; the anchors in the order of their labels."""

    def __init__(
        self,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        view: View,
        plan: Plan,
        tile: tuple[Tile, int] | None,
    ) -> None:
        wide = reference.dtype not in (torch.bfloat16, torch.float16)
        self.embeddings, self.memory = embeddings.contiguous(), reference.contiguous()
        if wide:
            self.memory = self.memory.float()
        self.n, self.width = embeddings.shape
        self.m = len(reference)
        self.pairs, self.view = pairs, view
        padded = padded_dim(self.width)
        self.tile, self.per_processor = tile or triton_walk.tile_for(padded, wide)
        self.sizes = {"WIDTH": self.width, "PADDED": padded}
        self.blocks = -(-self.n // self.tile.rows)
        self.blocks_per_bit = -(-self.blocks // triton_match.BITS)
        self.mapped, self.divided = view.scale is not None, view.renormalise
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
        self.per_piece = max(1, min(each, self.tiles) if self.divided else self.tiles)  # tiles
        self.held = min(self.m, self.per_piece * self.tile.items) * self.divided
        # Where all rows are held as they are seen, nothing is left to the walks.
        whole = self.divided and self.held == self.m
        self.affine, self.norm = self.mapped and not whole, self.divided and not whole
        self._allocate()
        self._prepare()
        self._match()
        if whole:
            self.memory = self.seen

    def _allocate(self) -> None:
        """Make the buffers of what is prepared: few allocations, because each costs as much as a small kernel."""
        n, m, ids = self.n, self.m, self.ids
        small = (n, n, n, n * ids, n * self.rows_out, m, m, m * ids, self.segments)
        (self.order, self.own_codes, self.ends, self.own_ids, self.own_rows, self.codes, self.rows, self.row_ids,
         self.counts) = self._buffers(torch.int32, small)  # fmt: skip
        large = (n, n * ids, n * self.rows_out, self.tiles, self.segments)
        *self.ordered, self.words, self.segment_words = self._buffers(torch.int64, large)
        self.norms = max(1, triton_match.NORM_VALUES // self.sizes["PADDED"])
        self.constants, self.inverses = self._buffers(torch.float32, (n * self.affine, m * self.divided))
        self.queries = self.plain = self.memory.new_empty((n, self.width))
        if self.norm and self.affine:
            self.plain = torch.empty_like(self.queries)
        self.seen = self.memory.new_empty((self.held, self.width)) if self.divided else self.memory

    def _prepare(self) -> None:
        """Sort the anchors, and make their queries and codes."""
        labels = self.pairs.labels.contiguous()
        ids, rows = (labels if t is None else t.contiguous() for t in (self.pairs.own_ids, self.pairs.own_positions))
        launch(
            triton_match.prepare_anchors, (-(-self.n // PREPARED), 1),
            (self.name, alignment(labels), alignment(ids), alignment(rows)),
            (self.embeddings, labels, ids, rows, self.scale, self.shift, *self.ordered, self.order,
             self.queries, self.plain, self.constants, self.own_codes, self.ends, self.own_ids, self.own_rows, self.n),
            {"IDS": self.ids, "ROWS_OUT": self.rows_out, "AFFINE": self.affine, "NORM": self.norm,
             "COLUMNS": triton_match.COLUMNS, "ROWS": PREPARED, **self.sizes},
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
        launch(
            triton_match.match_rows, (self.segments + -(-m // self.norms) * self.divided, 1),
            (self.name, alignment(labels), alignment(ids), alignment(taken)),
            (labels, ids, taken, *self.ordered, self.ends, self.codes, self.row_ids, self.rows, self.counts,
             self.words, self.segment_words, self.memory, self.scale, self.shift, self.inverses, self.seen,
             m, self.n, self.blocks_per_bit * self.tile.rows, self.segments, self.held),
            {"IDS": self.ids, "ROWS_OUT": self.rows_out, "MASKED": mask is not None,
             "AFFINE": self.mapped, "NORM": self.divided, "STEPS": self.n.bit_length(),
             "SEGMENT": self.segment, "BLOCK": block, "ITEMS": self.tile.items, "NORMS": self.norms,
             **self.sizes},
            maxnreg=triton_match.REGISTERS,
        )  # fmt: skip

    def solve(self, plan: Plan, reduction: str, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return the losses (n,) float32 and the gradients of the anchors (n, d), divided as `reduction` says."""
        apart = reduction == "apart"
        # The number of pairs over a margin is also the sum of their weights, but for a memory's positives with norms.
        walk = partial(self._walk, gradient=gradient, count=apart or not self.norm)
        if plan.positives_first:
            positives = walk(plan.positives, None, 1)
            negatives = walk(plan.negatives, positives, plan.positives.sign)
        else:
            negatives = walk(plan.negatives, None, 1)
            positives = walk(plan.positives, negatives, 1)
        losses = torch.empty(self.n, dtype=torch.float32, device=self.memory.device)
        grads = torch.empty_like(self.embeddings) if gradient else None
        scales = losses
        if apart:
            counts = [walk.second[: walk.splits * self.n].sum() for walk in (positives, negatives)]
            scales = 1 / torch.stack(counts).clamp(min=1)
        dims = min(triton_finish.DIMS, self.sizes["PADDED"])
        launch(
            triton_finish.finish, (-(-self.n // triton_finish.ROWS), -(-self.width // dims)), self.name,
            (*positives[1:], negatives.first, negatives.second, negatives.mass, negatives.grads,
             self.order, self.memory, self.inverses, self.scale, self.shift, scales, losses,
             losses if grads is None else grads, self.n, positives.splits, negatives.splits,
             plan.rate_p, plan.rate_n, plan.margin, float(plan.positives.sign),
             1 / self.n if reduction == "mean" else 1.0),
            {"KIND": plan.kind, "APART": apart, "AFFINE": self.affine, "NORM": self.norm, "GRAD": gradient,
             "ROWS": triton_finish.ROWS, "DIMS": dims, "WIDTH": self.width},
        )  # fmt: skip
        return losses, grads

    def _walk(self, form: Form, given: _Walk | None, given_sign: int, *, gradient: bool, count: bool) -> _Walk:
        gradient, gather = gradient and form.sums != "best", form.pairs == "positive"
        splits, each = self._splits(gather, gradient)
        size = splits * self.n
        first, second, third, mass, grads = self._buffers(torch.float32, (*[size] * 4, size * self.width * gradient))
        if form.sums == "best":
            second = second.view(torch.int32)
        walk = _Walk(splits, first, second, third, mass, grads)
        less = form.sums == "best" and not gather and given is not None
        before = walk if given is None else given
        powers = form.sums in ("power", "circle") and not gather
        wrongs = self.order.new_empty(splits * self.blocks) if powers else self.order
        seen = self.norm and not gather
        pieces = range(0, max(1, self.tiles), self.per_piece) if seen else range(1)
        queries, memory = (self.plain, self.seen) if seen else (self.queries, self.memory)
        for redo, piece in itertools.product((False, True) if powers else (False,), pieces):
            if len(pieces) > 1 and (redo or piece > 0):
                self._copy(piece, wrongs, redo)
            launch(
                triton_walk.walk, (self.blocks, splits), (self.name, before.second.dtype),
                (queries, memory, self.own_codes, self.codes, self.own_ids, self.row_ids, self.own_rows,
                 self.inverses, self.constants, self.rows, self.counts, self.words, self.segment_words,
                 before.first, before.second, *walk[1:], wrongs,
                 self.n, self.held if seen and piece == 0 else self.m, each, piece, self.per_piece, before.splits,
                 self.blocks_per_bit,
                 form.factor * LOG2_E, form.u, form.v, float(given_sign)),
                {"FORM": form.sums, "PAIRS": form.pairs, "SIGN": form.sign, "LESS": less, "GATHER": gather,
                 "REDO": redo, "PIECES": piece > 0, "IDS": self.ids, "ROWS_OUT": self.rows_out,
                 "AFFINE": self.affine and not seen, "NORM": self.norm and not seen,
                 "COUNT": count or seen, "GRAD": gradient, "SEGMENT": self.segment, "ROWS": self.tile.rows,
                 "ITEMS": min(self.tile.items, triton_walk.LISTED) if gather else self.tile.items, **self.sizes},
                **triton_walk.options(self.tile, self.per_processor, gather),
            )  # fmt: skip
        return walk

    def _copy(self, piece: int, wrongs: Tensor, redo: bool) -> None:
        """Hold the rows from tile `piece` on as they are seen."""
        first = piece * self.tile.items
        held = min(self.held, self.m - first)
        launch(
            triton_match.copy_rows, (-(-held // self.norms), 1), self.name,
            (self.memory, self.scale, self.shift, self.seen, wrongs, self.m, first, held, len(wrongs)),
            {"AFFINE": self.mapped, "REDO": redo, "NORMS": self.norms, **self.sizes},
        )  # fmt: skip

    def _splits(self, gather: bool, gradient: bool) -> tuple[int, int]:
        """Return (splits, rows of the memory a split): enough to fill the device, within the bytes of PARTIALS."""
        most = max(LEAST_SPLITS, PARTIALS // (4 * self.n * self.width)) if gradient else PROCESSORS * POSITIVE_SPLITS
        unit = self.segment if gather else self.tile.items
        wanted = max(1, min(PROCESSORS * self.per_processor // self.blocks, most - 2))
        if gather:
            wanted = min(POSITIVE_SPLITS, most - wanted)
        pieces = max(1, -(-self.m // unit)) if gather else max(1, self.per_piece)
        each = -(-pieces // wanted)
        return -(-pieces // each), each * unit

    def _buffers(self, dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return flat buffers of at least these sizes, from one allocation, each fit for wide loads."""
        rounded = [-(-size // 16) * 16 for size in sizes]
        found: tuple[Tensor, ...] = torch.empty(sum(rounded), dtype=dtype, device=self.memory.device).split(rounded)
        return found
