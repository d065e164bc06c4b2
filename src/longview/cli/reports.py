"""Evaluation results on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longview.cli.output import emit_table, say

if TYPE_CHECKING:
    from longview.evaluation import Report

WIDTH = 100
# Of the top 10 all of them; short, so that the table fits a terminal of 80 columns.
SHORT = {
    "coverage@10": "coverage",
    "novelty@10": "novelty",
    "popular_share@10": "popular",
    "new_share@10": "new",
}


def show_reports(reports: Sequence[Report]) -> None:
    """Print the protocol in words and the models side by side, best first."""
    import pyarrow as pa

    from longview.evaluation import compare

    first = reports[0]
    interval = first.intervals.get("ndcg@10")
    counts = f"{first.num_users:,} users, {first.num_items:,} items"
    say(f"{first.data}, {first.split}: {counts}, fingerprint {first.fingerprint}")
    say(textwrap.fill(f"{first.protocol}. {first.cold_share:.1%} of targets were never seen in training.", WIDTH))
    say()
    table = pa.Table.from_pylist(compare(reports))
    emit_table(table.rename_columns([SHORT.get(name, name) for name in table.column_names]), aligned=True)
    if interval is not None:
        say(f"\n95 % interval of ndcg@10 of {first.name}: {interval[0]:.4f} to {interval[1]:.4f}")
