"""Kernels that join or end what others made, and have one configuration a width: for `tests.ops.offline` to compile."""

from __future__ import annotations

from typing import Any

from longview.ops.attention import MaskSpec, triton_backward_keys
from longview.ops.drift_filter import MAX_WIDTH, STORED, SUM_DIMS, SUM_ROWS, triton_filter
from longview.ops.kernels import padded_dim
from longview.ops.softmax_loss import triton_blocks, triton_full, triton_sampled

Shipped = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]
WIDTHS = (64, 128, 256, 512)


def shipped() -> list[Shipped]:
    """Return what is compiled: (name, kernel, signature, constants, options)."""
    return [*_softmax(), *_filter(), *_attention()]


def _softmax() -> list[Shipped]:
    found: list[Shipped] = []
    for width in WIDTHS:
        size = {"ROWS": triton_full.SMALL, "WIDTH": width, "PADDED": width}
        for flag in (False, True):
            kinds = {"MIX": True, "SMOOTH": flag}
            found.append((f"full finish d={width} smooth={flag}", triton_full.full_finish, FULL, kinds | size, {}))
            log_q = {"LOG_Q": flag}
            targets = triton_sampled.sampled_targets
            found.append((f"sampled targets d={width} log_q={flag}", targets, TARGETS, log_q | size, {}))
        found.append((f"sampled finish d={width}", triton_sampled.sampled_finish, FINISH, size, {}))
    for width in (384, 512, 1024):
        constants = {"SMOOTH": True, "ROWS": triton_blocks.SMALL, "AT_ONCE": triton_blocks.AT_ONCE}
        constants |= {"WIDTH": width, "DEPTH": triton_blocks.DEPTH}
        found.append((f"block losses d={width}", triton_blocks.block_losses, LOSSES, constants, {}))
    return found


def _filter() -> list[Shipped]:
    """Every policy at the widths of encoders, and at the widest."""
    found: list[Shipped] = []
    for width in (*WIDTHS, MAX_WIDTH):
        for sampled in (False, True):
            constants = {"SAMPLED": sampled, "EARLY": True, "ROWS": SUM_ROWS, "DIMS": SUM_DIMS, "WIDTH": width}
            found.append((f"sum batch d={width} sampled={sampled}", triton_filter.sum_batch, SUMS, constants, {}))
        padded = padded_dim(width)
        size = {"ROWS": max(1, STORED // padded), "WIDTH": width, "PADDED": padded}
        for name, flags in POLICIES.items():
            constants = {**PLAIN, **flags, **size}
            found.append((f"filter {name} d={width}", triton_filter.filter_moments, MOMENTS, constants, {}))
    return found


def _attention() -> list[Shipped]:
    found: list[Shipped] = []
    for dim in (64, 128, 256):
        constants: dict[str, Any] = {
            "M": MaskSpec.ultra_prefix(256, 128),
            "CONTEXT": False,
            "TARGETS": False,
            "HEADS": 4,
            "ROWS": 16,
            "FAST": True,
            "BN": 64,
        }
        constants |= {"D_QK": dim, "D_V": dim, "P_QK": dim, "P_V": dim}
        for sloped in (False, True):
            kernel, name = triton_backward_keys.attention_backward_sum, f"backward sum {dim} sloped={sloped}"
            found.append((name, kernel, SLICES, {**constants, "SLOPED": sloped}, {"num_warps": 4}))
    return found


def _floats(names: str, kind: str = "*fp32") -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


HALF = {"queries": "*bf16", "items": "*bf16", "targets": "*i64"}
FULL = HALF | _floats("mean_item tops_Sn totals_Sn mixes_Snd logs losses grad_queries")
FULL |= _floats("n num_items splits", "i32") | _floats("factor smoothing weight", "fp32")
TARGETS = HALF | _floats("target_log_q wanted") | {"n": "i32", "factor": "fp32"}
FINISH = {"items": "*bf16", "targets": "*i64", "n": "i32", "weight": "fp32"} | _floats("mixes shares grad_queries")
LOSSES = HALF | _floats("mean_item tops_Tn totals_Tn logs losses")
LOSSES |= _floats("n num_items tiles", "i32") | _floats("factor smoothing", "fp32")
SUMS = _floats("values kept sums") | {"labels": "*i64", "b": "i32", "floor": "fp32"}
MOMENTS = _floats("values sums moments error gain surprise evidence drift kept kept_drift stored")
MOMENTS |= _floats("b blocks", "i32") | _floats("noise rate", "fp32")
PLAIN: dict[str, Any] = {"KIND": "axbn", "ANCHOR": "state"}
PLAIN |= dict.fromkeys(("SQUARED", "SHARED", "SAMPLED", "LEARNED", "WEIGHED"), False) | {"EARLY": True}
POLICIES: dict[str, dict[str, Any]] = {
    "xbn": {"KIND": "xbn", "ANCHOR": "batch"},
    "moving average": {"KIND": "moving-average"},
    "constant noise": {},
    "noise of the sampler": {"SAMPLED": True, "LEARNED": True, "SQUARED": True},
    "noise of the innovations": {"WEIGHED": True, "SHARED": True},
}
SLICES = _floats("part_k part_v column_k column_v") | _floats("d_k d_v pre_k pre_v", "*bf16") | {"sums": "*i32"}
SLICES |= _floats("d_k_token d_k_head d_v_token d_v_head sum_token", "i32:16")
