"""Quantised tables in the place of a model's embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longview.errors import InputError
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


def quantise_model_tables(model: nn.Module, bits: int, group: int = 64, *, least_rows: int = 1024) -> list[str]:
    """Replace every `nn.Embedding` of at least `least_rows` rows in `model` by a `QuantisedEmbedding`, in place.

    Positions, time buckets and actions are small and stay as they are. Drop-in for inference; training such a model
    leaves its tables unchanged.

    Returns:
        The names of the tables that were replaced.

    Raises:
        InputError: bits, group or values that a table refuses; a model that has no such table.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5000, 64))
        >>> quantise_model_tables(model, bits=4)
        ['0']
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings >= least_rows
    ]
    if not found:
        raise InputError(f"quantise_model_tables: no embedding table of {least_rows} rows or more in the model")
    for name, module in found:
        table = QuantisedTable.from_table(module.weight.detach(), bits, group)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, QuantisedEmbedding(table, module.weight.dtype))
    return [name for name, _ in found]
