"""What fewer bits for the item table cost: the same model evaluated with and without."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from longview.errors import InputError, suggestion
from longview.ops.quantisation import QuantisedEmbedding, QuantisedTable

BITS = {"int8": 8, "int4": 4}
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class QuantisedItems:
    """A copy of a model whose item table is quantised, and what the table takes; the model itself is untouched."""

    name: str
    model: Any
    bytes: int
    full_bytes: int
    key = "quantised"

    @property
    def label(self) -> str:
        """What a report of the copy is called."""
        return f"{self.name} items"

    @classmethod
    def of(cls, model: M, name: str) -> QuantisedItems:
        """Return `model` (with `model.embedding.items`, an `nn.Embedding`) with a table of `int8` or `int4`.

        Raises:
            InputError: no such table; values that float16 cannot scale.
        """
        check_name(name)
        items = model.embedding.items  # type: ignore[union-attr]
        assert isinstance(items, nn.Embedding), "a trained model has a table of items"
        table = QuantisedTable.from_table(items.weight.detach(), BITS[name])
        other = copy.deepcopy(model)
        other.embedding.items = QuantisedEmbedding(table, items.weight.dtype)  # type: ignore[union-attr]
        return cls(name, other.eval(), table.nbytes, items.weight.nbytes)

    def describe(self, full: Mapping[str, float], quantised: Mapping[str, float]) -> dict[str, Any]:
        """Return sizes, and how far each metric moved from the `full` table's: difference, and as a share of it."""
        return {
            "tables": self.name,
            "bytes": self.bytes,
            "full_bytes": self.full_bytes,
            "drift": drift(full, quantised),
        }

    def summary(self) -> str:
        """Return what was exchanged, in words."""
        return f"{self.name} item table, {self.bytes / self.full_bytes:.0%} of the bytes of the trained one"


def drift(full: Mapping[str, float], quantised: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """Return how far each metric moved: difference, and as a share of `full`."""
    return {name: _moved(full[name], quantised[name]) for name in full if name in quantised}


def _moved(full: float, quantised: float) -> dict[str, float | None]:
    share = (quantised - full) / full if full else None
    return {"full": full, "quantised": quantised, "difference": quantised - full, "relative": share}


def check_name(name: str) -> None:
    """Refuse tables that are neither `int8` nor `int4`."""
    if name not in BITS:
        raise InputError(f"tables {name!r}{suggestion(name, BITS)}: choose {' or '.join(BITS)}")
