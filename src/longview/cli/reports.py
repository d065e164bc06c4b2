"""Evaluation results on the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longview.cli.output import emit_table, say

if TYPE_CHECKING:
    from longview.evaluation import Report
    from longview.evaluation.impression_report import ImpressionReport

WIDTH = 100
# Of the top 10 all of them; short, so that the table fits a terminal of 80 columns.
SHORT = {
    "coverage@10": "coverage",
    "novelty@10": "novelty",
    "popular_share@10": "popular",
    "new_share@10": "new",
}


def show_reports(reports: Sequence[Report | ImpressionReport]) -> None:
    """Print the protocol in words and the models side by side, best first; all reports are of one kind."""
    from longview.evaluation import Report

    retrieval = [report for report in reports if isinstance(report, Report)]
    if retrieval:
        _show_retrieval(retrieval)
    else:
        _show_ranking([report for report in reports if not isinstance(report, Report)])


def _show_ranking(reports: Sequence[ImpressionReport]) -> None:
    import pyarrow as pa

    from longview.evaluation.impression_report import compare_impressions
    from longview.evaluation.ranking_card import label, main

    first = reports[0]
    say(
        f"{first.data}, {first.split}: {first.num_candidates:,} candidates in {first.num_requests:,} requests of "
        f"{first.num_users:,} users, impressions {first.impressions}"
    )
    say(textwrap.fill(f"{first.protocol}.", WIDTH))
    say()
    table = pa.Table.from_pylist(compare_impressions(reports))
    emit_table(table.rename_columns([label(name) for name in table.column_names]), aligned=True)
    ends = [(label(n), *first.intervals[n]) for n in table.column_names if n in first.intervals and main(n)]
    if ends:
        say(f"\n95 % intervals of {first.name}: " + ", ".join(f"{n} {low:.4f} to {high:.4f}" for n, low, high in ends))
    for task, left in first.one_class.items():
        if left["users"]:
            say(f"{task}: {left['users']:,} users have one class only and count in no GAUC.")


def _show_retrieval(reports: Sequence[Report]) -> None:
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
