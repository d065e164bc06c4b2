"""`longview bench`: every speed and memory figure the project quotes, one command each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from longview.cli.output import emit_json, note

bench_app = typer.Typer(help="Measure speed and memory; every figure the project quotes is one of these.")

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")]


Rounds = Annotated[int, typer.Option(help="Timed rounds of each setting.")]


@bench_app.command("attention")
def attention_bench(
    rounds: Rounds = 20,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer_checkout: Annotated[
        Path | None, typer.Option(metavar="DIR", help="On a GPU: a checkout of Meta's generative-recommenders to time.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="On a GPU: draw the figures there.")] = None,
    json: JsonFile = None,
) -> None:
    """Time attention beside softmax attention and, on a GPU, Meta's kernel."""
    from longview.errors import InputError

    if device == "cpu":
        from longview.bench.attention import bench_attention

        if plot or peer_checkout:
            raise InputError("--plot and --peer-checkout go with --device cuda")
        _deliver(bench_attention(rounds=rounds), json)
        return
    if device != "cuda":
        raise InputError(f"--device {device}: expected cpu or cuda")
    from longview.bench.attention_gpu import bench_attention_gpu
    from longview.bench.attention_plot import draw_attention

    result = bench_attention_gpu(json, rounds=rounds, peer_checkout=peer_checkout)
    _deliver(result, json)
    if plot is not None:
        draw_attention(plot, result)


@bench_app.command("tune")
def tune_bench(
    head_dim: Annotated[int, typer.Option(help="Numbers a head.")] = 128,
    heads: Annotated[int, typer.Option(help="Heads.")] = 4,
    local_window: Annotated[int, typer.Option(help="Newest keys a row sees; 0 = all.")] = 256,
    global_size: Annotated[int, typer.Option(help="Prefix keys every row sees.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of a history.")] = 4096,
    jobs: Annotated[int | None, typer.Option(min=1, help="Candidates compiled at a time.")] = None,
    rounds: Rounds = 10,
    json: JsonFile = None,
) -> None:
    """Find the fastest block sizes of the attention kernels for a shape on this GPU, and the settings that use them."""
    from longview.bench.tune import Shape, tune_attention

    shape = Shape(head_dim, heads, local_window, global_size, length)
    result = tune_attention(shape, json, rounds=rounds, jobs=jobs, progress=note)
    note("to use them: longview train … " + " ".join(f"--set {setting}" for setting in result["set"]))
    _deliver(result, json)


@bench_app.command("layer")
def layer_bench(rounds: Rounds = 20, json: JsonFile = None) -> None:
    """Time the fused HSTU layer on a GPU beside bare matrix products, eager and compiled torch."""
    from longview.bench.layer import bench_layer

    _deliver(bench_layer(json, rounds=rounds), json)


@bench_app.command("quantisation")
def quantisation_bench(
    rounds: Rounds = 20,
    table_rows: Annotated[int, typer.Option(help="Rows of each embedding table, of 128 or 512 values.")] = 10_000_000,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="products, where_it_pays, layers or tables. [default: all]")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Time FP8 products and layers, and lookups in INT4 and INT8 tables on a GPU beside bfloat16."""
    from longview.bench.quantisation import PARTS, bench_quantisation

    _deliver(bench_quantisation(json, rounds=rounds, table_rows=table_rows, only=only or PARTS), json)


@bench_app.command("loss")
def loss_bench(rounds: Rounds = 20, json: JsonFile = None) -> None:
    """Time softmax losses and embedding updates on a GPU beside torch's own."""
    from longview.bench.loss import bench_loss

    _deliver(bench_loss(rounds=rounds), json)


@bench_app.command("memory-loss")
def memory_loss_bench(
    rounds: Rounds = 20,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer: Annotated[bool, typer.Option(help="Also time pytorch-metric-learning, where it is installed.")] = False,
    json: JsonFile = None,
) -> None:
    """Time the losses between a batch and a memory beside plain torch and pytorch-metric-learning."""
    from longview.bench.memory_loss import bench_memory_loss

    _deliver(bench_memory_loss(json, device=device, rounds=rounds, peer=peer), json)


@bench_app.command("balance")
def balance_bench(
    data: Annotated[
        Path | None, typer.Option(help="A prepared data set: simulate its histories too, beside made-up lifelong ones.")
    ] = None,
    ranks: Annotated[int, typer.Option(help="Simulated ranks.")] = 8,
    steps: Annotated[int, typer.Option(help="Simulated steps.")] = 300,
    rounds: Rounds = 20,
    json: JsonFile = None,
) -> None:
    """Compare full histories, stochastic length and its load-balanced form: simulated ranks, and two processes."""
    from longview.bench.balance import bench_balance

    _deliver(bench_balance(json, data=data, ranks=ranks, steps=steps, rounds=rounds, progress=note), json)


@bench_app.command("step")
def step_bench(
    rounds: Annotated[int, typer.Option(help="Timed steps of each setting.")] = 10,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="steps, before or recompute. [default: all]")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw where the time of a token goes, before and after.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Time whole training steps of a large model on a GPU, with kernels and without, and say where the time goes."""
    from longview.bench.step import PARTS, bench_step
    from longview.bench.step_plot import draw_steps
    from longview.errors import InputError

    only = only or list(PARTS)
    if plot is not None and not {"steps", "before"} <= set(only):
        raise InputError("--plot shows steps and before: measure both parts, or leave it out")
    result = bench_step(json, rounds=rounds, only=only)
    if plot is not None:
        draw_steps(plot, result)
    _deliver(result, json)


@bench_app.command("scoring")
def scoring_bench(rounds: Rounds = 20, json: JsonFile = None) -> None:
    """Time scoring candidates behind long histories on a GPU: full passes beside kept states."""
    from longview.bench.scoring import bench_scoring

    _deliver(bench_scoring(json, rounds=rounds), json)


@bench_app.command("memory-step")
def memory_step_bench(
    rounds: Annotated[int, typer.Option(help="Timed steps of each provider.")] = 100,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
) -> None:
    """Time training steps with an embedding memory, for each way to correct its drift."""
    from longview.bench.memory_step import bench_memory_step

    _deliver(bench_memory_step(json, device=device, rounds=rounds), json)


@bench_app.command("recommend")
def recommend_bench(
    run: Annotated[Path, typer.Option(help="Directory of a trained run.")],
    k: Annotated[int, typer.Option("-k", help="Items for each user.")] = 10,
    repeats: Annotated[int, typer.Option(help="Timed calls, after a first one.")] = 5,
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: JsonFile = None,
) -> None:
    """Time recommending to every user of a data set, end to end."""
    from longview.bench.recommend import bench_recommend

    _deliver(bench_recommend(run, k=k, repeats=repeats, data=data, device=device), json)


@bench_app.command("prepare")
def prepare_bench(
    rows: Annotated[int, typer.Option(help="Rows of the log that is written and read.")] = 10_000_000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal logs.")] = 0,
    json: JsonFile = None,
) -> None:
    """Time preparing a large log, as CSV and as Parquet, and its peak memory."""
    from longview.bench.prepare import bench_prepare

    _deliver(bench_prepare(rows=rows, seed=seed), json)


@bench_app.command("train")
def train_bench(
    data: Annotated[
        Path | None, typer.Option(help="A prepared data set; without, a made-up log of the shape of MovieLens-1M.")
    ] = None,
    config: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="Preset or file.")] = "hstu-small",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; replaces those of the quoted figure."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Timed epochs.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer_python: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="An interpreter that has RecTools: time its SASRec beside.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Time an epoch of training, and recommending to everybody after it."""
    from rich.console import Console

    from longview.bench.train import SETTINGS, bench_train
    from longview.training.progress import make_progress

    progress = make_progress(Console(stderr=True))
    result = bench_train(
        data,
        config=config,
        overrides=set_ or SETTINGS,
        epochs=epochs,
        device=device,
        peer_python=peer_python,
        progress=progress,
    )
    _deliver(result, json)


def _deliver(result: dict[str, Any], file: Path | None) -> None:
    """Write the result where asked, and print it otherwise; it says which command made it."""
    from longview.bench.record import command_line, write_result

    if file is None:
        emit_json({**result, "command": command_line(sys.argv[1:])})
        return
    write_result(file, result)
    note(f"written to {file}")
