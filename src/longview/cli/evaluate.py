"""`longview evaluate`: how good a trained model is, beside the baselines."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from longview.cli.output import emit_json, note, say
from longview.errors import InputError

if TYPE_CHECKING:
    import torch

    from longview.data.dataset import PreparedData
    from longview.evaluation.eight_bit import EightBitProducts
    from longview.evaluation.evaluate import Which
    from longview.evaluation.quantised import QuantisedItems
    from longview.training.goals import Goal

SHOWN = ("hr@10", "ndcg@10", "ne", "auc", "gauc")


def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    baselines: Annotated[bool, typer.Option(help="Evaluate the baselines beside it.")] = True,
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    include_seen: Annotated[
        bool | None,
        typer.Option(
            "--include-seen/--exclude-seen",
            help="Rank items of the user's history too. [default: as the data set says; nearly always exclude]",
        ),
    ] = None,
    tables: Annotated[
        str | None, typer.Option(metavar="int8|int4", help="Also evaluate with a quantised item table: its drift.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp8", help="Also evaluate with 8-bit products, emulated on a CPU: their drift."),
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Images: also order by k-reciprocal re-ranking.")] = False,
) -> None:
    """Show how good the model is at what it was trained for, beside the baselines.

    Retrieval: every target ranked among the whole catalogue. Ranking: what was predicted of every candidate.
    Figures with and without seen items are not comparable.
    """
    from longview.cli.images import evaluate_on_images, refuse
    from longview.cli.reports import show_reports
    from longview.evaluation.eight_bit import EightBitProducts
    from longview.evaluation.quantised import QuantisedItems
    from longview.serving.recommender import Recommender
    from longview.training.goals import Baselines, make_goal
    from longview.training.images import is_image_run

    if is_image_run(run):
        refuse(include_seen=include_seen, tables=tables, precision=precision)
        evaluate_on_images(run, split, baselines=baselines, data=data, device=device, json=json, rerank=rerank)
        return
    if rerank:
        raise InputError("--rerank is of runs on images, and this one is on logs: leave it out")
    recommender = Recommender.load(run, data=data, device=device)
    loaded = recommender.run
    assert loaded is not None, "it has just been loaded"
    others_of_it: list[QuantisedItems | EightBitProducts] = []
    if tables is not None:
        others_of_it.append(QuantisedItems.of(loaded.model, tables))
    if precision is not None:
        others_of_it.append(EightBitProducts.of(loaded.model, precision))
    goal = make_goal(loaded.config, _with_seen(recommender.data, include_seen), loaded.schema, loaded.tasks)
    which = cast("Which", split)  # evaluation checks it
    own = goal.reports(loaded.model, which, recommender.device)
    drifts, others_of_own = _quantised(others_of_it, goal, own, which, recommender.device)
    others = goal.baselines(which, lambda name: note(f"evaluating {name}")) if baselines else [Baselines()] * len(own)
    parts = [[report, *also, *other.reports] for report, also, other in zip(own, others_of_own, others, strict=True)]
    if json:
        documents = [
            {"reports": [r.to_dict() for r in reports], "skipped": other.skipped, **drift}
            for reports, other, drift in zip(parts, others, drifts, strict=True)
        ]
        command = " ".join(["longview", *sys.argv[1:]])
        emit_json({"command": command, **documents[0], **({"further": documents[1:]} if documents[1:] else {})})
        return
    for number, (reports, other, drift) in enumerate(zip(parts, others, drifts, strict=True)):
        if number:
            say()
        show_reports(reports)
        for one in others_of_it:
            _say_drift(one.summary(), drift[one.key]["drift"])
        for name, reason in other.skipped.items():
            note(f"{name} skipped: {reason}")


def _with_seen(data: PreparedData, include_seen: bool | None) -> PreparedData:
    """Return the data with seen items in or out of rankings, as asked, or as they say themselves."""
    if include_seen is None:
        return data
    return replace(data, meta=data.meta.model_copy(update={"repeats": include_seen}))


def _quantised(
    others: list[QuantisedItems | EightBitProducts], goal: Goal, own: list[Any], which: Which, device: torch.device
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return, for each report, what fewer bits moved, by what has them, and the reports with those."""
    drifts: list[dict[str, Any]] = [{} for _ in own]
    reports: list[list[Any]] = [[] for _ in own]
    for other in others:
        note(f"evaluating with {other.label}")
        for number, report in enumerate(goal.reports(other.model, which, device)):
            reports[number].append(replace(report, name=f"{report.name}, {other.label}"))
            drifts[number][other.key] = other.describe(own[number].metrics, report.metrics)
    return drifts, reports


def _say_drift(what: str, drift: dict[str, Any]) -> None:
    moved = {n: drift[n] for n in SHOWN if n in drift} or drift
    parts = [
        f"{name} {one['difference']:+.4f}" + ("" if one["relative"] is None else f" ({one['relative']:+.2%})")
        for name, one in moved.items()
    ]
    say(f"\n{what}: {', '.join(parts)}")
