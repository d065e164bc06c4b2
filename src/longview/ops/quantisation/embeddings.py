"""Quantised tables in the place of a model's embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longview.errors import InputError
from longview.ops.quantisation.bags import MODES, check_bags, check_offsets
from longview.ops.quantisation.table import QuantisedTable


class QuantisedEmbedding(nn.Module):
    """Takes the place of an `nn.Embedding` in a model that is done training.

    `forward` looks ids up; `weight` is the whole table, dequantised anew each time it is asked for, so that code that
    multiplies with the weight stays right. What scores whole catalogues uses `table.scores` or `table.blocks`.
    """

    def __init__(self, table: QuantisedTable, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype

    @property
    def weight(self) -> Tensor:
        """The values (V, D)."""
        return self.table.dequantise(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (*ids.shape, D)."""
        return self.table.lookup(ids, self.dtype)


class QuantisedEmbeddingBag(nn.Module):
    """Takes the place of an `nn.EmbeddingBag` of mode `sum` or `mean` in a model that is done training.

    `forward` takes what that module takes; rows of `padding_idx` count neither in sums nor in means.
    """

    def __init__(self, table: QuantisedTable, like: nn.EmbeddingBag) -> None:
        """Make the bag module for `table`, with the options of `like`.

        Raises:
            InputError: a mode or an option without a quantised form.
        """
        super().__init__()
        check_replaceable("QuantisedEmbeddingBag", like)
        self.table, self.dtype, self.mode = table, like.weight.dtype, like.mode
        self.include_last_offset, self.padding_idx = like.include_last_offset, like.padding_idx

    @property
    def weight(self) -> Tensor:
        """The values (V, D)."""
        return self.table.dequantise(self.dtype)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Return (bags, D): of ids (n,) with offsets, or of ids (bags, n).

        Raises:
            InputError: offsets with ids (bags, n), or none without; as `QuantisedTable.pooled`.
        """
        if input.dim() != (2 if offsets is None else 1):
            given = "no offsets" if offsets is None else "offsets"
            raise InputError(
                f"embedding bag: ids have shape {tuple(input.shape)}, with {given}; expected (bags, n) without or (n,) "
                "with them"
            )
        ids, weights, mode = input.reshape(-1), per_sample_weights, self.mode
        if offsets is None:
            offsets = torch.arange(len(input) + 1, device=ids.device) * input.shape[1]
        elif not self.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_full((1,), len(ids))])
        if weights is not None:
            weights = weights.reshape(-1)
        if self.padding_idx is not None:
            check_bags(ids, offsets, weights, mode)
            if not ids.is_cuda:
                check_offsets(offsets, len(ids))
            weights, mode = self._without_padding(ids, offsets, weights, self.padding_idx)
        return self.table.pooled(ids, offsets, weights, mode=mode, dtype=self.dtype)

    def _without_padding(
        self, ids: Tensor, offsets: Tensor, weights: Tensor | None, padding: int
    ) -> tuple[Tensor, str]:
        """Return weights, 0 for padding, whose sums are the module's result."""
        kept = ids.ne(padding).float()
        if self.mode == "sum":
            return (kept if weights is None else kept * weights), "sum"
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.long().cumsum(0)])
        counts = before[offsets.long()].diff().clamp(min=1)
        return kept / counts.repeat_interleave(offsets.diff(), output_size=len(ids)), "sum"


def check_replaceable(name: str, module: nn.Embedding | nn.EmbeddingBag) -> None:
    """Refuse a module that does to its rows what a quantised table does not.

    Raises:
        InputError: `name` has the mode `max`, or renormalises rows.
    """
    if isinstance(module, nn.EmbeddingBag) and module.mode not in MODES:
        raise InputError(f"{name} has the mode {module.mode}; quantised tables have sum and mean")
    if module.max_norm is not None:
        raise InputError(
            f"{name} renormalises rows it looks up (max_norm={module.max_norm}), which a quantised table does not; "
            "renormalise the weight once and set max_norm to None"
        )


def quantise_model_tables(model: nn.Module, bits: int, group: int = 64, *, least_rows: int = 1024) -> list[str]:
    """Replace every `nn.Embedding` and `nn.EmbeddingBag` of at least `least_rows` rows in `model`, in place.

    A `QuantisedEmbedding` or a `QuantisedEmbeddingBag` takes its place. Positions, time buckets and actions are small
    and stay as they are. Drop-in for inference; training such a model leaves its tables unchanged.

    Returns:
        The names of the tables that were replaced.

    Raises:
        InputError: bits, group or values that a table refuses; a bag of mode `max`, rows that are renormalised when
            looked up; a model that has no such table. The model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5000, 64))
        >>> quantise_model_tables(model, bits=4)
        ['0']
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.num_embeddings >= least_rows
    ]
    if not found:
        raise InputError(f"quantise_model_tables: no embedding table of {least_rows} rows or more in the model")
    for name, module in found:
        check_replaceable(f"quantise_model_tables: {name}", module)
    tables = [QuantisedTable.from_table(module.weight.detach(), bits, group) for _, module in found]
    for (name, module), table in zip(found, tables, strict=True):
        parent, _, last = name.rpartition(".")
        other: nn.Module
        if isinstance(module, nn.EmbeddingBag):
            other = QuantisedEmbeddingBag(table, module)
        else:
            other = QuantisedEmbedding(table, module.weight.dtype)
        setattr(model.get_submodule(parent), last, other)
    return [name for name, _ in found]
