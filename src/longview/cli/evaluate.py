"""`longview evaluate`: how good a trained model is, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from longview.cli.output import emit_json, note, say

if TYPE_CHECKING:
    from longview.evaluation.evaluate import Which


def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    baselines: Annotated[bool, typer.Option(help="Evaluate the baselines beside it.")] = True,
    data: Annotated[Path | None, typer.Option(help="The prepared data set, if it has moved since training.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how good the model is at what it was trained for, beside the baselines.

    Retrieval: every target ranked among the whole catalogue. Ranking: what was predicted of every candidate.
    """
    from longview.cli.reports import show_reports
    from longview.serving.recommender import Recommender
    from longview.training.goals import Baselines, make_goal

    recommender = Recommender.load(run, data=data, device=device)
    loaded = recommender.run
    assert loaded is not None, "it has just been loaded"
    goal = make_goal(loaded.config, recommender.data, loaded.schema, loaded.tasks)
    which = cast("Which", split)  # evaluation checks it
    own = goal.reports(loaded.model, which, recommender.device)
    others = goal.baselines(which, lambda name: note(f"evaluating {name}")) if baselines else [Baselines()] * len(own)
    parts = [[report, *other.reports] for report, other in zip(own, others, strict=True)]
    if json:
        documents = [
            {"reports": [r.to_dict() for r in reports], "skipped": other.skipped}
            for reports, other in zip(parts, others, strict=True)
        ]
        emit_json({**documents[0], **({"further": documents[1:]} if documents[1:] else {})})
        return
    for number, (reports, other) in enumerate(zip(parts, others, strict=True)):
        if number:
            say()
        show_reports(reports)
        for name, reason in other.skipped.items():
            note(f"{name} skipped: {reason}")
