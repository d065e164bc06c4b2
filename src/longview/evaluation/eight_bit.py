"""What 8-bit products in the layers cost: the same model evaluated with and without."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from longview.errors import InputError, suggestion
from longview.evaluation.quantised import drift
from longview.models.hstu import HSTULayer


@dataclass(frozen=True)
class EightBitProducts:
    """A copy of a model whose layers multiply in FP8 (emulated on a CPU); the model itself is untouched."""

    name: str
    model: Any
    layers: int
    key = "fp8"

    @property
    def label(self) -> str:
        """What a report of the copy is called."""
        return f"{self.name} products"

    @classmethod
    def of(cls, model: nn.Module, name: str) -> EightBitProducts:
        """Return `model` with products of `fp8`.

        Raises:
            InputError: another precision; a model without HSTU layers, or one that was trained so.
        """
        if name != "fp8":
            raise InputError(f"precision {name!r}{suggestion(name, ['fp8'])}: choose fp8")
        other = copy.deepcopy(model).eval()
        layers = [module for module in other.modules() if isinstance(module, HSTULayer)]
        if not layers:
            raise InputError("this model has no HSTU layers, and FP8 products are theirs: leave --precision out")
        if any(layer.precision == "fp8" for layer in layers):
            raise InputError("this model has FP8 products already (model.layer.precision): leave --precision out")
        for layer in layers:
            layer.precision = "fp8"
        return cls(name, other, len(layers))

    def describe(self, full: Mapping[str, float], quantised: Mapping[str, float]) -> dict[str, Any]:
        """Return how far each metric moved from that of full products: difference, and as a share of it."""
        return {"precision": self.name, "layers": self.layers, "drift": drift(full, quantised)}

    def summary(self) -> str:
        """Return what was exchanged, in words."""
        return f"{self.name} products in {self.layers} layers"
