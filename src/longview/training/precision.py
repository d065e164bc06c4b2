"""Which precision a run may use on a device, and why not where it may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from longview.errors import InputError
from longview.models.retriever import RetrieverConfig
from longview.ops.quantisation import why_no_fp8, why_not_fp8

MANY = 1 << 30  # rows of a batch for which FP8 pays if it ever does


def bf16_refusal(device: torch.device) -> str | None:
    """Return why bfloat16 would not pay on `device`, or None where it does."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported(False) else "this GPU has no bfloat16 units"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return None if fast else "this CPU has neither AVX512-BF16 nor AMX, so bfloat16 would be emulated and slower"
    return f"bfloat16 is not tested on {device.type}"


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str | None]:
    """Return the dtype of matrix products and, where it is not the `wanted` one, a sentence saying why."""
    if wanted != "bf16":
        return torch.float32, None
    refusal = bf16_refusal(device)
    if refusal is None:
        return torch.bfloat16, None
    return torch.float32, f"precision bf16 is off, training in float32: {refusal}"


def fp8_note(model: RetrieverConfig, device: torch.device) -> str | None:
    """Return a sentence where `layer.precision` does less on `device` than its name promises.

    Raises:
        InputError: fp8 by name on a GPU without it.
    """
    wanted = model.layer.precision
    if wanted == "auto":
        reason = why_not_fp8(device, MANY, model.width, model.width)
        return None if reason is None else f"layer.precision auto stays off: {reason}"
    if wanted == "run":
        return None
    if device.type == "cpu":
        return "layer.precision fp8 is emulated on a CPU: the numbers of 8-bit products, without their speed"
    reason = why_no_fp8(device, model.width)
    if reason is not None:
        raise InputError(f"model.layer.precision fp8 cannot be used here: {reason}; set it to auto, or leave it out")
    return None


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: autocast for bfloat16, nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)


@contextmanager
def matmul_precision(device: torch.device) -> Iterator[None]:
    """Let float32 products of training steps use TF32 on a GPU; evaluation outside keeps full float32."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
