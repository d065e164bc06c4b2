"""Every configuration of the attention kernels that ships, for checks that need no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_backward import attention_backward_rows
from longview.ops.attention.triton_backward_keys import attention_backward_keys
from longview.ops.attention.triton_forward import attention_forward
from longview.ops.attention.triton_tuning import Kernel, blocks_for

KERNELS: dict[Kernel, Any] = {
    "forward": attention_forward,
    "rows": attention_backward_rows,
    "keys": attention_backward_keys,
}
MASKS = (MaskSpec.causal(), MaskSpec.ultra_prefix(256, 128), MaskSpec.ultra_prefix(1024, 512))
POINTERS = {"items": "*i32", "stamps": "*i32", "position": "*fp32", "time": "*fp32", "slant": "*fp32"}
SCALARS = ("half_alpha", "scale")

Shipped = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]


def shipped() -> list[Shipped]:
    """Return (name, kernel, signature, constants, options) of each, as `tests/ops/offline.py` compiles them."""
    return list(_shipped())


def _shipped() -> Iterator[Shipped]:
    for name, kernel in KERNELS.items():
        for dim in (64, 128, 256):
            for mask in MASKS:
                yield one(name, kernel, dim, mask)
            yield one(name, kernel, dim, MASKS[0], distances=200, buckets=64)
            yield one(name, kernel, dim, MASKS[0], average=1024)
            if name != "forward":
                yield one(name, kernel, dim, MASKS[1], sloped=True)


def one(
    name: Kernel,
    kernel: Any,
    dim: int,
    mask: MaskSpec,
    *,
    distances: int = 0,
    buckets: int = 0,
    average: float = float("inf"),
    sloped: bool = False,
) -> Shipped:
    """Return the configuration that `blocks_for` gives bf16 heads of `dim`, with bias tables of the given sizes."""
    blocks = blocks_for(name, mask, dim, 2, biased=distances + buckets > 0, average=average)
    constants = {
        "M": mask,
        "CONTEXT": False,
        "TARGETS": False,
        "HEADS": 4,
        "D_QK": dim,
        "D_V": dim,
        "P_QK": dim,
        "P_V": dim,
        "P": distances,
        "B": buckets,
        "BM": blocks.rows,
        "BN": blocks.keys,
        "JOINED": blocks.joined,
        "FAST": True,
        "PRECISION": "tf32",
    }
    if name != "forward":
        constants["SLOPED"] = sloped
    if name == "rows":
        constants["PADDED"] = 64
    signature = {argument: _type(argument) for argument in kernel.arg_names if argument not in constants}
    title = (
        f"{name} {dim} {mask.local_window}/{mask.global_size}"
        + (" bias" if distances else "")
        + (" sloped" if sloped else "")
    )
    return title, kernel, signature, constants, {"num_warps": blocks.warps, "num_stages": blocks.stages}


def _type(argument: str) -> str:
    if argument in SCALARS:
        return "fp32"
    if argument.endswith(("_token", "_head")):
        return "i32:16"
    if argument == "sum_token":
        return "i32:16"
    if argument.startswith(("part_", "column_")):
        return "*fp32"
    return POINTERS.get(argument, "*bf16")
