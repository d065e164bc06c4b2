"""The picture of how a run learned: its axes."""

from __future__ import annotations

from typing import Any

import pytest

from longview.evaluation.curves import learning


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
@pytest.mark.parametrize("measured", [True, False])
def test_epochs_are_whole_numbers(epochs: int, measured: bool) -> None:
    figure = pytest.importorskip(
        "matplotlib.figure", reason="matplotlib is not installed: pip install 'longview[plots]'"
    )
    history: list[dict[str, Any]] = [{"epoch": n, "loss": 1 / n} for n in range(1, epochs + 1)]
    if measured:
        history = [{**record, "map@r": 0.5} for record in history]
    drawn = figure.Figure(figsize=(5, 4))
    learning(drawn.subplots(), {"history": history, "selected_by": "validation map@r", "best_epoch": 1})
    for axes in drawn.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)
