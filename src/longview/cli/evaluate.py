"""`longview evaluate`: how good a trained model is, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from longview.cli.output import emit_json, note

if TYPE_CHECKING:
    from longview.evaluation.evaluate import Which


def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    baselines: Annotated[bool, typer.Option(help="Evaluate popularity, item-kNN and EASE beside it.")] = True,
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Rank every target among the whole catalogue and show accuracy, coverage and novelty beside the baselines."""
    from longview.cli.reports import show_reports
    from longview.evaluation.baselines import evaluate_baselines
    from longview.serving.recommender import Recommender

    recommender = Recommender.load(run, data=data, device=device)
    which = cast("Which", split)  # evaluate() checks it
    report = recommender.evaluate(which)
    reports, skipped = [report], {}
    if baselines:
        others = evaluate_baselines(recommender.data, which, started=lambda name: note(f"evaluating {name}"))
        reports, skipped = [report, *others.reports], others.skipped
    if json:
        emit_json({"reports": [r.to_dict() for r in reports], "skipped": skipped})
        return
    show_reports(reports)
    for name, reason in skipped.items():
        note(f"{name} skipped: {reason}")
