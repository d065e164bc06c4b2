"""The speed and memory table of the README, made from the benchmark files in `results/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
HEAD = "| what | Longview | beside it, in the same run | from |\n|---|---|---|---|"


def speed_table(results: Path) -> str:
    """Return the Markdown table of every benchmark file in `results`, with the machines they ran on below it."""
    lines: list[str] = []
    machines: dict[str, None] = {}
    for path in sorted(Path(results).glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        rows = ROWS.get(value.get("benchmark", "")) if isinstance(value, dict) else None
        if rows is None:
            continue
        source = f"[{path.name}](results/{path.name})"
        if "command" in value:
            source += f": `{value['command']}`"
        lines += [f"| {what} | **{ours}** | {other} | {source} |" for what, ours, other in rows(value)]
        machines[_machine(value["environment"])] = None
    if not lines:
        return "_No measurements yet._"
    return "\n".join([HEAD, *lines, "", f"Measured on: {'; '.join(machines)}."])


def _train(result: Result) -> list[tuple[str, str, str]]:
    model, loss, batch = (result["config"][part] for part in ("model", "loss", "batches"))
    size = f"{batch['batch_size']} histories" if batch["batch_size"] else f"{batch['token_budget']:,} events"
    softmax = f"{loss['num_negatives']} negatives" if loss["kind"] == "sampled" else "full softmax"
    setting = (
        f"{result['data']['name']}, width {model['width']}, {model['layers']} layers, history {model['max_length']:,}, "
        f"{softmax}, batches of {size}"
    )
    peer = result.get("peer")
    ours = f"{result['seconds_per_epoch']:.1f} s"
    rows = [(f"an epoch of training ({setting})", ours, _seconds(peer, "seconds_per_epoch"))]
    if peer:
        users = f"{result['data']['users']:,}"
        top = f"{result['recommend_seconds']:.2f} s"
        rows.append((f"top 10 for all {users} users", top, _seconds(peer, "seconds_to_recommend")))
    return [*rows, ("peak memory of that training", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB", "")]


def _prepare(result: Result) -> list[tuple[str, str, str]]:
    rows = result["settings"]["rows"]
    return [
        (
            f"preparing {rows:,} events from {kind}",
            f"{result[f'{key}_seconds']:.0f} s, {result[f'{key}_peak_gib']} GiB",
            "",
        )
        for kind, key in (("CSV", "csv"), ("Parquet", "parquet"))
    ]


def _recommend(result: Result) -> list[tuple[str, str, str]]:
    users, name = result["data"]["users"], result["data"]["name"]
    return [(f"top {result['settings']['k']} for all {users:,} users of {name}", f"{result['seconds']:.2f} s", "")]


def _attention(result: Result) -> list[tuple[str, str, str]]:
    rows = []
    for one in result["settings"]:
        ours = one["providers"]["ours"]
        for key in ("forward", "forward and backward"):
            rate = f"{ours[key]['gflops']:.0f} GFLOP/s ({ours[key]['of_matmul']:.0%} of a matrix product)"
            faster = one["times_faster"]["SDPA, causal softmax"][key]
            rows.append((f"attention, {one['name']}, {key}", rate, f"{faster:.1f} × as fast as causal SDPA (softmax)"))
    return rows


UNFUSED = 5.0  # TFLOP/s; below, FlexAttention has fallen back to its unfused form, which is no comparison


def _attention_gpu(result: Result) -> list[tuple[str, str, str]]:
    if "window against full causal" not in result:
        return []  # a run that was cut short
    rows = []
    for one in result["settings"]:
        rates = {
            name: " / ".join(f"{row[kind]['tflops']:.0f}" for kind in ("forward", "backward"))
            for name, row in one["providers"].items()
            if row["forward"]["tflops"] >= UNFUSED
        }
        ours = f"{rates.pop('ours')} TFLOP/s"
        beside = "; ".join(f"{name}: {rate}" for name, rate in rates.items())
        rows.append((f"attention, {one['name']}, forward / backward", ours, beside))
    scored = result["candidates"]
    what = f"{scored['users']} users × {scored['candidates']:,} candidates on {scored['history']:,} events, one layer"
    return [*rows, (what, f"{scored['microseconds']:.0f} µs", "")]


def _step(result: Result) -> list[tuple[str, str, str]]:
    return [
        (
            f"training step, 8 layers of width 512, {one['length']:,} events, {one['attention']}",
            f"{one['tokens_per_second'] / 1e6:.2f} M events/s, MFU {one['mfu']:.0%}",
            "" if one["times_faster_than_full"] == 1 else f"{one['times_faster_than_full']:.1f} × full causal",
        )
        for one in result["steps"]
    ]


ROWS: dict[str, Callable[[Result], list[tuple[str, str, str]]]] = {
    "train": _train,
    "prepare": _prepare,
    "recommend": _recommend,
    "attention": _attention,
    "attention on a GPU": _attention_gpu,
    "training step on a GPU": _step,
}


def _seconds(peer: Result | None, key: str) -> str:
    if peer is None:
        return ""
    return f"{peer['model']} {peer['versions']['rectools']}: {peer[key]:.1f} s"


def _machine(environment: Result) -> str:
    accelerator = f", {environment['accelerator']}" if environment.get("accelerator") else ""
    return (
        f"{environment['processor']}, {environment['threads']} threads{accelerator}, "
        f"Python {environment['python']}, torch {environment['torch']}"
    )
