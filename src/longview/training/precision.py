"""Which precision a run may use on a device, and why not where it may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


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
