"""Candidates behind long histories on a GPU: HSTU's full pass against ULTRA's, and against ULTRA's kept states.

A full pass reads history and candidates of a request from the start; a state was made before (`models.incremental`) and
is all that scoring reads. Appending new events to a state is timed beside reading the whole history again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longview.bench.device import captured, clocks, launches, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import Timing, interleaved
from longview.data.batches import JaggedBatch
from longview.evaluation.environment import environment
from longview.models.incremental import Incremental
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.retriever import Retriever, RetrieverConfig
from longview.models.scoring import CandidateScorer

HISTORY, WIDTH, LAYERS, HEADS, ITEMS = 16384, 512, 8, 4, 100_000
WINDOW, PREFIX = 256, 128
SETTINGS = ((4, 1024), (1, 1024), (8, 1024))  # users, and candidates of each
APPENDED, APPENDING = (1, 16), 4  # events a user, and users
HSTU, ULTRA = "HSTU, full pass", "ULTRA, full pass"
LAUNCHED, CAPTURED = "ULTRA, cached state, launch by launch", "ULTRA, cached state, captured"
METHOD = (
    f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, {HISTORY:,} events a user, bfloat16 products and stream; HSTU: "
    f"full causal attention; ULTRA: semi-local attention {WINDOW}/{PREFIX}, candidates too. A full pass reads history "
    "and candidates of all users in one pass through fused layers, captured as a CUDA graph; a cached state was made "
    "before, and is scored kernel by kernel (Incremental.candidates) or from a CUDA graph (CandidateScorer, the copy "
    "of its input included). Wall time of whole calls, from ids to candidates' vectors, the device waited for at the "
    "end of each; providers take turns within one run; times_faster: ratio of medians. Appending: new events to their "
    "query vector, kernel by kernel, against reading the whole history again"
)


def bench_scoring(
    json: Path | None = None, *, rounds: int = 20, settings: Sequence[tuple[int, int]] = SETTINGS
) -> dict[str, Any]:
    """Time scoring candidates and appending events behind long histories.

    Args:
        json: also write the result there, after each setting.
        rounds: timed calls of each provider.
        settings: users, and candidates of each.

    Raises:
        InputError: no GPU, or fewer than one round.
    """
    require_gpu("scoring")
    result: dict[str, Any] = {"benchmark": "candidate scoring on a GPU", "method": METHOD, "rounds": rounds}
    result |= {"scoring": [], "appending": [], "environment": environment()}
    models = {HSTU: _model(0, 0), ULTRA: _model(WINDOW, PREFIX)}

    def keep(part: str, row: dict[str, Any]) -> None:
        result[part].append(row)
        if json is not None:  # what is measured is kept, whatever comes
            write_result(json, result)

    with torch.autocast("cuda", torch.bfloat16):
        for users, candidates in settings:
            keep("scoring", _scoring(models, users, candidates, rounds))
        for events in APPENDED:
            keep("appending", _appending(models, APPENDING, events, rounds))
    result["clocks"] = clocks()
    if json is not None:
        write_result(json, result)
    return result


@torch.no_grad()
def _scoring(models: dict[str, Retriever], users: int, candidates: int, rounds: int) -> dict[str, Any]:
    histories, asked = _events(users, HISTORY), _events(users, candidates)
    whole, count = _behind(histories, asked), users * candidates
    incremental = Incremental(models[ULTRA])
    state, scorer = incremental.prefill(histories), CandidateScorer(incremental)
    expected = models[ULTRA].hidden(whole).targets(count)
    scorer.candidates(state, asked)
    found = scorer.candidates(state, asked)
    graphs = {name: captured(_full(model, whole, count)) for name, model in models.items()}
    calls: dict[str, Callable[[], object]] = {name: graph.replay for name, graph in graphs.items()}
    calls |= {
        LAUNCHED: lambda: incremental.candidates(state, asked),
        CAPTURED: lambda: scorer.candidates(state, asked),
    }
    timings = interleaved({name: _waited(call) for name, call in calls.items()}, rounds=rounds)
    return {
        "users": users,
        "candidates": candidates,
        "history": HISTORY,
        "providers": _providers(timings, calls),
        "times_faster_than_hstu": _ratios(timings, HSTU),
        "state_mib_a_user": round(state.nbytes / users / 2**20, 3),
        "difference_from_ultra_full_pass": _difference(found, expected),
        "same_bits_captured_and_launched": torch.equal(found, incremental.candidates(state, asked)),
    }


@torch.no_grad()
def _appending(models: dict[str, Retriever], users: int, events: int, rounds: int) -> dict[str, Any]:
    histories, new = _events(users, HISTORY), _events(users, events)
    whole = _of_length(replace(_behind(histories, new), target_lengths=None), HISTORY + events)
    incremental = Incremental(models[ULTRA])
    state = incremental.prefill(histories)

    def append() -> Tensor:
        return incremental.vectors(incremental.append(state, new))

    calls: dict[str, Callable[[], object]] = {
        HSTU: lambda: models[HSTU].user_vectors(whole),
        ULTRA: lambda: models[ULTRA].user_vectors(whole),
        "ULTRA, appended to the state": append,
    }
    timings = interleaved({name: _waited(call) for name, call in calls.items()}, rounds=rounds)
    return {
        "users": users,
        "events": events,
        "history": HISTORY,
        "providers": _providers(timings, calls),
        "times_faster_than_hstu": _ratios(timings, HSTU),
        "times_faster_than_ultra_full_pass": _ratios(timings, ULTRA),
        "difference_from_ultra_full_pass": _difference(append(), models[ULTRA].user_vectors(whole)),
    }


def _model(window: int, prefix: int) -> Retriever:
    torch.manual_seed(0)
    config = RetrieverConfig(
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        max_length=HISTORY,
        residual="product",
        embedding={"positions": False},  # type: ignore[arg-type]
        layer=LayerConfig(scale_length=float(HISTORY)),
        attention=AttentionConfig(
            local_window=window, global_size=prefix, target_scope="semi_local" if window else "full"
        ),
    )
    return config.build(ITEMS).cuda().eval()


def _events(users: int, length: int) -> JaggedBatch:
    """Return random items, `length` of each user."""
    items = torch.randint(ITEMS, (users * length,), device="cuda")
    return _of_length(JaggedBatch(items, torch.arange(0, users * length + 1, length, device="cuda")), length)


def _behind(histories: JaggedBatch, others: JaggedBatch) -> JaggedBatch:
    """Return the histories, each with its others behind it as candidates."""
    items = torch.cat([x.items.view(x.num_sequences, -1) for x in (histories, others)], 1)
    joined = JaggedBatch(items.flatten(), histories.offsets + others.offsets, target_lengths=others.offsets.diff())
    return _of_length(joined, items.shape[1])


def _of_length(batch: JaggedBatch, length: int) -> JaggedBatch:
    vars(batch)["max_length"] = length  # nobody needs to wait for the device to learn it
    return batch


def _full(model: Retriever, whole: JaggedBatch, count: int) -> Callable[[], object]:
    def call() -> Tensor:
        # What autocast casts within a graph is made anew by every replay.
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return model.hidden(whole).targets(count)

    return call


def _waited(call: Callable[[], object]) -> Callable[[], object]:
    def waiting() -> None:
        call()
        torch.cuda.synchronize()

    return waiting


def _providers(timings: dict[str, Timing], calls: dict[str, Callable[[], object]]) -> dict[str, Any]:
    return {name: {**timings[name].as_dict(), "kernels": launches(call)} for name, call in calls.items()}


def _ratios(timings: dict[str, Timing], base: str) -> dict[str, float]:
    return {name: round(timings[base].median / x.median, 3) for name, x in timings.items() if name != base}


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative distance of two results."""
    return round(float((found - expected).float().norm() / expected.float().norm()), 6)
