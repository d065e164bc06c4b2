"""The HSTU layer as one differentiable operation, in a handful of kernels and with little kept for backward.

    from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer, why_off

`reference.py` is the definition; `triton_project.py` and `triton_output.py` hold what comes before and after the
attention, `gluon_*.py` the faster products of narrow layers on Hopper, `eight_bit.py` those with FP8 operands,
`triton_norm.py` and `triton_backward.py` the gradients between the products; `function.py` puts them together. This
file validates and dispatches, and imports no kernel before one can run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.dropout.counter import draw_seed
from longview.ops.hstu_layer.settings import Attention, LayerParameters, LayerSettings
from longview.ops.kernels import why_no_triton
from longview.ops.quantisation.choice import MULTIPLE as MULTIPLE_OF_8_BITS
from longview.ops.quantisation.choice import why_no_fp8

__all__ = ["Attention", "LayerParameters", "LayerSettings", "fused_layer", "why_off"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2048  # columns of a row that one program holds in registers
MULTIPLE = 8  # 16-byte rows of 16-bit numbers, which the copy engine needs, and whole dropout counters


def fused_layer(
    z_TD: Tensor, parameters: LayerParameters, settings: LayerSettings, attention: Attention, training: bool
) -> Tensor:
    """Return Z' = Z + Linear(dropout(Norm(A) * U)), with U, V, Q, K = SiLU(Linear(Norm(Z))), A = attention(Q, K, V).

    Args:
        z_TD: (T, width), float32, bfloat16 or float16; T of 0 is allowed.
        parameters: the layer's tensors, each of any floating dtype (float32 masters under autocast, usually).
        settings: dimensions, options, and what backward recomputes.
        attention: an object with `forward` and `backward` for this batch; only q, k and v get gradients.
        training: whether dropout is on; its seed comes from the default generator of z's device.

    Returns:
        (T, width), dtype of `z_TD`. Products have operands of autocast's dtype where autocast is on, else of z's, and
        float32 sums. There is no second derivative.

    Raises:
        InputError: a shape, dtype or setting that does not fit, or a device without the kernels; the message says
            which, and what was expected.
    """
    _check(z_TD, parameters, settings)
    product = _product_dtype(z_TD)
    reason = why_off(settings, z_TD.shape[1], z_TD.device, product)
    if reason is not None:
        raise InputError(f"hstu_layer: the fused layer cannot run here: {reason}")
    if not len(z_TD):
        return z_TD
    from longview.ops.hstu_layer.function import Call, FusedLayer

    rate = settings.dropout if training else 0.0
    tensors = tuple(x.contiguous() for x in parameters.tensors())
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (z_TD, *tensors))
    call = Call(settings, attention, product, rate, draw_seed(z_TD.device) if rate else None, differentiated)
    out: Tensor = FusedLayer.apply(call, z_TD.contiguous(), *tensors)  # type: ignore[no-untyped-call]
    return out


def why_off(settings: LayerSettings, width: int, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Return why the fused layer cannot run with products in `dtype` on `device`, in a sentence, or None."""
    reason = why_no_triton(device)
    if reason is not None:
        return reason
    if dtype not in DTYPES:
        return f"the kernels know float32, bfloat16 and float16, and this is {dtype}"
    if dtype == torch.bfloat16 and torch.device(device).type == "cpu":
        return "Triton's interpreter computes bfloat16 wrongly; use float32"
    for name, size in (("width", width), ("d_qk", settings.d_qk), ("d_v", settings.d_v)):
        if size % MULTIPLE:
            return f"{name} is {size}; the kernels need a multiple of {MULTIPLE}"
    for name, size in (("width", width), ("heads * d_v", settings.gate)):
        if size > LARGEST:
            return f"{name} is {size}; the kernels hold whole rows of up to {LARGEST}"
    return _why_no_8_bits(settings, width, device) if settings.fp8_projection or settings.fp8_output else None


def _why_no_8_bits(settings: LayerSettings, width: int, device: torch.device | str) -> str | None:
    for name, size in (("width", width), ("heads * d_v", settings.gate), ("heads * d_qk", settings.sizes[2])):
        if size % MULTIPLE_OF_8_BITS:
            return f"{name} is {size}; FP8 products need a multiple of {MULTIPLE_OF_8_BITS}"
    return why_no_fp8(device, width)


def _product_dtype(z_TD: Tensor) -> torch.dtype:
    kind = z_TD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else z_TD.dtype


def _check(z_TD: Tensor, parameters: LayerParameters, settings: LayerSettings) -> None:
    if z_TD.dim() != 2 or z_TD.dtype not in DTYPES:
        raise InputError(
            f"hstu_layer: z is {z_TD.dtype} of shape {tuple(z_TD.shape)}; expected (tokens, width), "
            "float32, bfloat16 or float16"
        )
    _check_settings(settings)
    width, columns, gate = z_TD.shape[1], sum(settings.sizes), settings.gate
    normed = gate // settings.groups
    expected = LayerParameters.__dataclass_fields__.keys()
    shapes = ((width,), (width,), (columns, width), (columns,), (normed,), (normed,), (width, gate), (width,))
    for name, shape, x in zip(expected, shapes, parameters.tensors(), strict=True):
        if tuple(x.shape) != shape:
            raise InputError(f"hstu_layer: {name} has shape {tuple(x.shape)}; expected {shape}")
        if not x.is_floating_point():
            raise InputError(f"hstu_layer: {name} is {x.dtype}; expected a floating dtype")
        if x.device != z_TD.device:
            raise InputError(f"hstu_layer: {name} is on {x.device} and z on {z_TD.device}; expected one device")


def _check_settings(settings: LayerSettings) -> None:
    for name in ("heads", "d_qk", "d_v"):
        if getattr(settings, name) < 1:
            raise InputError(f"hstu_layer: {name} is {getattr(settings, name)}; expected at least 1")
    for name, allowed in (("activation", ("uvqk", "u")), ("norm", ("row", "head"))):
        if getattr(settings, name) not in allowed:
            raise InputError(f"hstu_layer: {name} is {getattr(settings, name)!r}; expected one of {', '.join(allowed)}")
    if not 0 <= settings.dropout < 1:
        raise InputError(f"hstu_layer: dropout is {settings.dropout}; expected a rate in [0, 1)")
    if not settings.epsilon > 0:
        raise InputError(f"hstu_layer: epsilon is {settings.epsilon}; expected a positive number")
