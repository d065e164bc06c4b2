"""The table of a study of metric learning (`evaluation/metric_study.py`), for a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longview.evaluation.markdown import table

METRIC = "recall@1"


def metric_table(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a study: a row a policy, a column a place, in it Recall@1 at every size of the memory.

    Bold: better than the reference with intervals that do not overlap; struck through: worse so.
    """
    rows = result["rows"]
    places = list(dict.fromkeys((row["regime"], row["batch"]) for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    regimes, batches = ({place[at] for place in places} for at in (0, 1))
    heads = [", ".join(_named(place, len(regimes) > 1, len(batches) > 1)) for place in places]
    cells = [
        [policy, *(_cell([row for row in rows if (row["regime"], row["batch"], row["policy"]) == (*place, policy)])
                   for place in places)]
        for policy in policies
    ]  # fmt: skip
    return "\n\n".join([_about(result), table(["policy", *heads], cells)])


def _named(place: tuple[str, int], regime: bool, batch: bool) -> list[str]:
    return [place[0]] * regime + [f"batch {place[1]}"] * (batch or not regime)


def _cell(rows: list[Mapping[str, Any]]) -> str:
    return " / ".join(_marked(row["metrics"][METRIC]) for row in rows) or "–"


def _marked(found: Mapping[str, Any]) -> str:
    value = f"{found['mean']:.3f}"
    mark = {"better": "**", "worse": "~~"}.get(found.get("verdict", ""), "")
    return f"{mark}{value}{mark}"


def _about(result: Mapping[str, Any]) -> str:
    data, rows = result["data"], result["rows"]
    memories = sorted({row["memory"] for row in rows if row["memory"] is not None})
    seeds = sorted({len(row["seeds"]) for row in rows})
    sizes = " / ".join(f"{memory:.0%}" for memory in memories)
    words = [
        f"Recall@1 on the {data['unseen_images']:,} images of {data['unseen_classes']} classes that nobody trained on, "
        f"after {result['steps']:,} steps"
        + (f", with memories of {sizes} of the {data['training_images']:,} training images." if memories else "."),
        f"Seeds: {' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))}. Bold: better than "
        f"{result['reference']} in the same place, 95 % intervals of the two means apart; struck through: worse.",
    ]
    if not result["complete"]:
        words.append(f"**{result['missing_cells']} runs of {len(result['seeds'])} seeds are missing.**")
    return " ".join([*words, f"Made by `{result['command']}`."])
