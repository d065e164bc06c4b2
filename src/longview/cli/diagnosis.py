"""What this machine offers and what Longview makes of it: the facts behind `longview doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from longview.ops.attention import available_backends, why_off
from longview.ops.hstu_layer.tiling import why_no_staying
from longview.ops.kernels import why_no_triton
from longview.ops.quantisation.choice import where_it_pays, why_no_fp8, why_no_pipeline
from longview.training.precision import bf16_refusal

CORE = ("torch", "numpy", "pyarrow", "polars", "pydantic", "safetensors", "typer", "rich")
EXTRAS = {
    "plots": ("matplotlib", "training curves beside the result card"),
    "tensorboard": ("tensorboard", "training curves in TensorBoard (loop.tensorboard=true)"),
}
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
ATTENTION = ("triton", "cpu", "dense", "reference")


def diagnose(where: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return device, kernels, versions, extras and space, JSON-ready, by heading.

    Example:
        >>> diagnose()["kernels"]["attention on cpu"]["chosen"]
        'cpu'
    """
    return {
        "versions": _versions(),
        "device": _device(),
        "kernels": _kernels(),
        "extras": {name: _extra(name, *about) for name, about in EXTRAS.items()},
        "space": _space(where or Path.cwd()),
    }


def _versions() -> dict[str, Any]:
    return {name: _version(name) for name in ("longview", *CORE, "triton")} | {"python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "default": "cpu",
        "processor": info.get("model name", platform.processor() or "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "bfloat16": _reason(bf16_refusal(torch.device("cpu"))),
        "gpus": gpus,
        "cuda": "ready" if gpus else _no_cuda(),
    }


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "off: this torch was built for CPUs only; install a CUDA build of torch to use a GPU"
    return "off: this torch can use CUDA but found no GPU; check the driver with nvidia-smi"


def _kernels() -> dict[str, Any]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found: dict[str, Any] = {}
    for device in devices:
        off = {name: _reason(why_off(name, device)) for name in ATTENTION}
        found[f"attention on {device}"] = {"chosen": available_backends(device)[0], **off}
        kernels = why_no_triton(device)
        for what, plain in (("HSTU layer", "eager"), ("softmax loss", "blocked"), ("item table gradient", "torch")):
            chosen = plain if kernels else "triton"
            found[f"{what} on {device}"] = {"chosen": chosen, "triton": _reason(kernels), plain: "on"}
        products = kernels or why_no_staying(device)
        chosen = "plain" if products else "hopper"
        found[f"products of the HSTU layer on {device}"] = {
            "chosen": chosen,
            "hopper": _reason(products),
            "plain": "on",
        }
        found[f"FP8 products on {device}"] = _fp8(device)
    found["top-k"] = {"chosen": "blocked", "blocked": "on"}
    return found


def _fp8(device: str) -> dict[str, Any]:
    """Return how the products of layers with 8-bit operands run."""
    kernels, pipeline = why_no_fp8(device, 1), why_no_pipeline(device)
    chosen = "hopper" if pipeline is None else "portable" if kernels is None else "none"
    if device == "cpu" and kernels is not None:
        chosen = "emulated"
    return {
        "chosen": chosen,
        "hopper": _reason(pipeline),
        "portable": _reason(kernels),
        "layer.precision auto": where_it_pays(device),
    }


def _reason(why_not: str | None) -> str:
    return "on" if why_not is None else f"off: {why_not}"


def _extra(name: str, module: str, gives: str) -> str:
    if importlib.util.find_spec(module) is not None:
        return f"installed: {gives}"
    return f"absent: pip install 'longview[{name}]' for {gives}"


def _space(where: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "directory": str(where),
        "free disk (GiB)": round(shutil.disk_usage(where).free / 2**30, 1),
    }
    if sys.platform == "linux":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory (GiB)"] = round(pages / 2**30, 1)
    return found


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; nothing elsewhere than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
