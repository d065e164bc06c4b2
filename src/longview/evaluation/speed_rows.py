"""What each benchmark's result says in the tables of speed and memory, as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Result = Mapping[str, Any]


class Row(NamedTuple):
    """A line of a table; the `main` ones stand in the README."""

    what: str
    ours: str
    beside: str = ""
    main: bool = False


def _train(result: Result) -> list[Row]:
    model, loss, batch = (result["config"][part] for part in ("model", "loss", "batches"))
    size = f"{batch['batch_size']} histories" if batch["batch_size"] else f"{batch['token_budget']:,} events"
    softmax = f"{loss['num_negatives']} negatives" if loss["kind"] == "sampled" else "full softmax"
    setting = (
        f"{result['data']['name']}, width {model['width']}, {model['layers']} layers, history {model['max_length']:,}, "
        f"{softmax}, batches of {size}"
    )
    peer = result.get("peer")
    ours = f"{result['seconds_per_epoch']:.1f} s"
    beside = _seconds(peer, "seconds_per_epoch")
    if "launch_by_launch" in result:
        beside = f"launch by launch: {result['launch_by_launch']['seconds_per_epoch']:.2f} s"
        ours = f"{result['seconds_per_epoch']:.2f} s"
    rows = [Row(f"an epoch of training ({setting})", ours, beside, main=bool(beside))]
    if peer:
        users = f"{result['data']['users']:,}"
        top = f"{result['recommend_seconds']:.2f} s"
        rows.append(Row(f"top 10 for all {users} users", top, _seconds(peer, "seconds_to_recommend"), main=True))
    return [*rows, Row("peak memory of that training", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB")]


def _prepare(result: Result) -> list[Row]:
    rows = result["settings"]["rows"]
    return [
        Row(
            f"preparing {rows:,} events from {kind}",
            f"{result[f'{key}_seconds']:.0f} s, {result[f'{key}_peak_gib']} GiB",
            main=kind == "CSV",
        )
        for kind, key in (("CSV", "csv"), ("Parquet", "parquet"))
    ]


def _recommend(result: Result) -> list[Row]:
    users, name = result["data"]["users"], result["data"]["name"]
    return [Row(f"top {result['settings']['k']} for all {users:,} users of {name}", f"{result['seconds']:.2f} s")]


def _attention(result: Result) -> list[Row]:
    rows = []
    for one in result["settings"]:
        ours = [one["providers"]["ours"][key] for key in ("forward", "forward and backward")]
        rate = " / ".join(f"{row['gflops']:.0f}" for row in ours)
        share = " / ".join(f"{row['of_matmul']:.0%}" for row in ours)
        faster = " / ".join(f"{times:.1f}" for times in one["times_faster"]["SDPA, causal softmax"].values())
        what = f"attention, {one['name']}, forward / forward and backward"
        rate = f"{rate} GFLOP/s ({share} of a matrix product)"
        main = one["name"] == "one history of 8192"
        rows.append(Row(what, rate, f"{faster} × as fast as causal SDPA (softmax)", main))
    return rows


MAIN_ATTENTION = ("full causal, 4096 tokens", "full causal, 16384 tokens", "prefix 256/128, 16384 tokens")


def _attention_gpu(result: Result) -> list[Row]:
    if "window against full causal" not in result:
        return []  # a run that was cut short
    rows = []
    for one in result["settings"]:
        rates = {
            name: " / ".join(f"{row[kind]['tflops']:.0f}" for kind in ("forward", "backward"))
            for name, row in one["providers"].items()
        }
        ours = f"{rates.pop('ours')} TFLOP/s"
        beside = "; ".join(f"{name}: {rate}" for name, rate in rates.items())
        main = one["name"].removesuffix(", dim 128") in MAIN_ATTENTION
        rows.append(Row(f"attention, {one['name']}, forward / backward", ours, beside, main))
    scored = result["candidates"]
    what = f"{scored['users']} users × {scored['candidates']:,} candidates on {scored['history']:,} events, one layer"
    return [*rows, Row(what, f"{scored['microseconds']:.0f} µs")]


def _step(result: Result) -> list[Row]:
    gains = {(x["length"], x["attention"]): x.get("times_faster_than_before") for x in result.get("before", ())}

    def beside(one: Result) -> str:
        full, before = one["times_faster_than_full"], gains.get((one["length"], one["attention"]))
        found = [] if full == 1 else [f"{full:.1f} × full causal"]
        return ", ".join(found if before is None else [*found, f"{before:.1f} × the step without kernels"])

    return [
        Row(
            f"training step, 8 layers of width 512, {one['length']:,} events, {one['attention']}",
            f"{one['tokens_per_second'] / 1e6:.2f} M events/s, MFU {one['mfu']:.0%}",
            beside(one),
            main=one["length"] == 16384 and one["attention"] != "full causal",
        )
        for one in result["steps"]
    ]


def _layer(result: Result) -> list[Row]:
    rows = []
    for one in result["shapes"]:
        for key, kind in (("layer_forward", "forward"), ("layer_forward_and_backward", "forward and backward")):
            times = {name: f"{row['median_ms']:.2f} ms" for name, row in one[key].items()}
            what = f"HSTU layer of width {one['width']}, {one['tokens']:,} events, {kind}"
            ours, main = times.pop("ours"), one["width"] == 512 and kind != "forward"
            rows.append(Row(what, ours, "; ".join(f"{name}: {time}" for name, time in times.items()), main))
        for key, what in (
            ("projection", "norm, projection and SiLU"),
            ("output", "norm, gate, dropout, product, residual"),
        ):
            row, bare = one[key]["ours"], one[key]["bare matrix product (cuBLAS)"]
            what = f"of that layer: {what}"
            beside = f"bare matrix product (cuBLAS): {bare['median_ms']:.3f} ms"
            rows.append(Row(what, f"{row['median_ms']:.3f} ms", beside))
    return rows


def _quantisation(result: Result) -> list[Row]:
    rows = []
    for one in result.get("products", ()):
        if one["product"] == "output":
            times = {name: f"{row['median_ms']:.3f} ms" for name, row in one["alone"].items()}
            ours = f"{times.pop('FP8, ours')}, {one['alone']['FP8, ours']['times_faster_than bfloat16, ours']:.2f} ×"
            what = f"FP8 product and residual, {one['rows']:,} rows, width {one['inner']}"
            beside = "; ".join(f"{name}: {time}" for name, time in times.items())
            rows.append(Row(what, ours, beside, main=one["inner"] == 2048 and "layers" in result))
    for one in result.get("layers", ()):
        kinds = [one[kind] for kind in ("forward", "forward_and_backward")]
        ours, plain = (
            " / ".join(f"{kind[name]['median_ms']:.2f} ms" for kind in kinds) for name in ("FP8", "bfloat16")
        )
        faster = " / ".join(f"{kind['FP8']['times_faster']:.2f} ×" for kind in kinds)
        what = f"HSTU layer in FP8, width {one['width']}, {one['tokens']:,} events, forward / forward and backward"
        rows.append(Row(what, f"{ours}, {faster}", f"bfloat16: {plain}"))
    for one in result.get("tables", ()):
        name = f"INT{one['bits']} table (groups of {one['group']}), rows of {one['width']}"
        main = (one["bits"], one["group"]) == (4, 64)
        rows.append(Row(f"{name}: size", f"{one['times_smaller']:.2f} × smaller than bfloat16", main=main))
        parts = [[row for row in one.get(part, ()) if row["kind"] == "uniform"] for part in ("lookups", "pooled")]
        lookups, pooled = ([row for row in part if row.get("how") != "launches"] for part in parts)
        timed = [(f"{row['ids']:,} lookups", row) for row in lookups]
        timed += [(f"sums of {row['bags']:,} bags of {row['ids_a_bag']}", row) for row in pooled]
        timed.append((f"{one['transfer']['ids']:,} rows copied from the host", one["transfer"]))
        for what, row in timed:
            ours, others = row["quantised"], [other for other in row if other.startswith("bfloat16")]
            faster = f"{ours['median_us']:.0f} µs, {ours['times_faster']:.2f} ×"
            beside = "; ".join(f"{other}: {row[other]['median_us']:.0f} µs" for other in others)
            rows.append(Row(f"{name}: {what}", faster, beside, main=main and row.get("ids_a_bag") == 100))
    return rows


BATCH = 32  # histories a rank in the table; the file has others


def _balance(result: Result) -> list[Row]:
    rows = []
    for one in result["simulated"]:
        if one["batch_size_a_rank"] == BATCH:
            what = (
                f"load spread of {one['ranks']} simulated ranks, {one['histories']}, history {one['max_length']:,}, "
                f"load n^{one['gamma']:.0f}, {BATCH} histories a rank: balanced stochastic length"
            )
            ours = f"{one['balanced']['max_over_mean']:.1%}, {one['speed_up_of_balance'] - 1:+.1%} throughput"
            plain, full = (f"{one[kind]['max_over_mean']:.1%}" for kind in ("plain", "full"))
            rows.append(Row(what, ours, f"plain: {plain}; whole histories: {full}", _main_balance(one)))
    return rows


def _main_balance(one: Result) -> bool:
    return bool(one["histories"].startswith("lifelong") and one["gamma"] == 1)


def _with_graph(row: Result, digits: int) -> str:
    """Return the time of a row, and that of its CUDA graph where there is one."""
    graph = f" ({row['graph_ms']:.2f} ms as a CUDA graph)" if "graph_ms" in row else ""
    return f"{row['median_ms']:.{digits}f} ms{graph}"


def _memory_loss(result: Result) -> list[Row]:
    def cell(row: Result) -> str:
        return f"{_with_graph(row, 2)}, {row['extra_mib']:,.0f} MiB"

    rows = []
    for one in result["settings"]:
        found = dict(one["providers"])
        ours = {name: found.pop(name) for name in ("contrastive", "supervised-contrastive") if name in found}
        for name, row in ours.items():
            peers = (f"compiled {name}", "chunked", "pytorch")
            beside = _joined({peer: cell(row) for peer, row in found.items() if peer.startswith(peers)})
            what = f"{name} of {one['batch']} × {one['rows']:,} memory rows of {one['width']}, {one['dtype']}"
            main = name != "contrastive" and one["batch"] == 256
            rows.append(Row(f"{what}, forward and backward", cell(row), beside, main))
    return rows


def _scoring(result: Result) -> list[Row]:
    rows = []
    for one in result["scoring"]:
        times = {name: f"{row['median_ms']:.2f} ms" for name, row in one["providers"].items()}
        ours = next(name for name in times if name.endswith("captured"))
        faster = f"{times.pop(ours)}, {one['times_faster_than_hstu'][ours]:.1f} × HSTU"
        what = f"{one['users']} × {one['candidates']:,} candidates behind {one['history']:,} events each, 8 layers"
        rows.append(Row(f"{what}: ULTRA with kept states", faster, _joined(times), main=one["users"] == 4))
    for one in result["appending"]:
        times = {name: f"{row['median_ms']:.2f} ms" for name, row in one["providers"].items()}
        ours = next(name for name in times if "appended" in name)
        what = f"{one['events']} new events of {one['users']} users behind {one['history']:,} events each"
        rows.append(Row(f"{what}: ULTRA, appended", times.pop(ours), _joined(times)))
    return rows


def _joined(cells: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {cell}" for name, cell in cells.items())


def _memory_step(result: Result) -> list[Row]:
    rows = []
    for one in result["settings"]:
        times = {name: _with_graph(row, 1) for name, row in one["providers"].items()}
        what = f"step of a small convolutional net, batch {one['batch']}, memory {one['memory']:,}: AXBN"
        beside = f"XBM: {times['XBM']}; XBN: {times['XBN']}; no memory: {times['no memory']}"
        rows.append(Row(what, times["AXBN"], beside, main=True))
    return rows


def _loss(result: Result) -> list[Row]:
    def cell(row: Result) -> str:
        return f"{row['median_ms']:.1f} ms, {row['peak_mib']:,.0f} MiB"

    rows = []
    for one in result["full"]:
        beside = one["providers"].get("compiled cross_entropy")
        what = f"full softmax, {one['queries']:,} queries, {one['items']:,} items, width {one['width']}"
        other = "" if beside is None else f"compiled cross-entropy: {cell(beside)}"
        rows.append(Row(what, cell(one["providers"]["default"]), other, main=one["items"] == 1_000_000))
    for one in result["update"]:
        ours, others = one["providers"]["row-wise AdamW"], ("torch sparse gradient, SparseAdam",)
        what = f"update of {one['rows']:,} rows of width {one['width']}, {one['lookups']:,} lookups"
        beside = "; ".join(f"{name}: {cell(one['providers'][name])}" for name in others)
        rows.append(Row(what, cell(ours), beside, main=True))
    return rows


def _seconds(peer: Result | None, key: str) -> str:
    if peer is None:
        return ""
    return f"{peer['model']} {peer['versions']['rectools']}: {peer[key]:.1f} s"


ROWS: dict[str, Callable[[Result], list[Row]]] = {
    "train": _train,
    "prepare": _prepare,
    "recommend": _recommend,
    "attention": _attention,
    "attention on a GPU": _attention_gpu,
    "training step on a GPU": _step,
    "fused HSTU layer on a GPU": _layer,
    "softmax losses and table updates on a GPU": _loss,
    "quantisation on a GPU": _quantisation,
    "candidate scoring on a GPU": _scoring,
    "balance": _balance,
    "losses over batch × memory, cpu": _memory_loss,
    "losses over batch × memory, cuda": _memory_loss,
    "training step with an embedding memory on a CPU": _memory_step,
    "training step with an embedding memory on a GPU": _memory_step,
}
