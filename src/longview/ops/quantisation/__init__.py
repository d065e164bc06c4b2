"""Fewer bits: FP8 matrix products for layers, INT8 and INT4 embedding tables for inference.

    from longview.ops.quantisation import QuantisedTable, quantised_linear, why_not_fp8

FP8: `fp8.py` checks and dispatches, `linear.py` differentiates; `reference.py` is the definition, `emulation.py` the
same numbers without a GPU; `triton_rows.py` rounds rows as they are made, `triton_product.py` and, on Hopper,
`triton_hopper.py` multiply, `choice.py` says where that is faster. Tables: `packing.py` has the bytes of a row,
`table.py` the table, `bags.py` sums of rows, `triton_table.py` the kernels, `embeddings.py` puts tables into a trained
model.
"""

from __future__ import annotations

from longview.ops.quantisation.choice import why_no_fp8, why_not_fp8
from longview.ops.quantisation.embeddings import QuantisedEmbedding, QuantisedEmbeddingBag, quantise_model_tables
from longview.ops.quantisation.fp8 import (
    QuantisedNorm,
    QuantisedRows,
    fp8_linear,
    gate_quantise,
    normalise_quantise,
    quantise_rows,
)
from longview.ops.quantisation.linear import quantised_linear
from longview.ops.quantisation.table import QuantisedTable

__all__ = [
    "QuantisedEmbedding",
    "QuantisedEmbeddingBag",
    "QuantisedNorm",
    "QuantisedRows",
    "QuantisedTable",
    "fp8_linear",
    "gate_quantise",
    "normalise_quantise",
    "quantise_model_tables",
    "quantise_rows",
    "quantised_linear",
    "why_no_fp8",
    "why_not_fp8",
]
