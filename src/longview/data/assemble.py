"""The files of a data set, written from a log that is read, sorted and filtered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.card import DataCard, FeatureCard, quantiles, repeats, split_card
from longview.data.columns import Columns
from longview.data.dataset import fingerprint, write_arrow
from longview.data.encode import Encoded, Report
from longview.data.features import Features
from longview.data.filters import Kept
from longview.data.mapped import MappedColumns
from longview.data.meta import Meta, SplitSpec
from longview.data.order import Ordered
from longview.data.splits import Rows, Split, resolve
from longview.data.spool import Spool
from longview.data.timestamps import SECOND
from longview.files import write_json


@dataclass(frozen=True)
class Entities:
    """The users or items that are kept: a table with `id` and features, and how the feature file covered them."""

    table: pa.Table
    card: FeatureCard | None

    @classmethod
    def of(cls, features: Features, path: Path) -> Entities:
        """Return what was read from the feature file at `path`."""
        names = tuple(name for name in features.table.column_names if name != "id")
        return cls(
            features.table,
            FeatureCard(
                file=str(path),
                id_column=features.id_column,
                columns=tuple(
                    n if features.columns.get(n, n) == n else f"{n} (from {features.columns[n]})" for n in names
                ),
                missing=features.missing,
                unused=features.unused,
                repeated=features.repeated,
            ),
        )


@dataclass(frozen=True)
class PreparedLog:
    """A log that is read, sorted and filtered. `inputs` are its files; the rest is what each step made of it."""

    inputs: tuple[Path, ...]
    columns: Columns
    encoded: Encoded
    ordered: Ordered
    kept: Kept
    actions: tuple[str, ...]
    users: Entities
    items: Entities
    simulated: bool = False

    def write(self, work: Path, scratch: Path, name: str, split: SplitSpec, report: Report) -> None:
        """Write the data set to the directory `work`, with `scratch` as working space."""
        lengths = self.kept.user_events[self.kept.users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events, tied = self._events(scratch / "events", report)
        with events:
            columns = MappedColumns(events)
            items, stamps = columns["item"], None if self.columns.time is None else columns["timestamp"]
            divided = Split.of(split if stamps is None else resolve(split, stamps), offsets, stamps)
            users = self.users.table.add_column(1, "offset", pa.array(offsets[:-1]))
            users = users.add_column(2, "length", pa.array(lengths))
            mark = fingerprint(users["id"], self.items.table["id"], offsets, items, stamps, divided.spec)
            columns.release()
            card = self._card(divided, offsets, items, events, tied, mark)
            columns.write_arrow(work / "events.arrow")
        write_arrow(work / "users.arrow", users)
        write_arrow(work / "items.arrow", self.items.table)
        write_json(work / "meta.json", self._meta(name, divided.spec, card).model_dump(mode="json"))
        (work / "card.md").write_text(card.markdown(name), encoding="utf-8")

    def _meta(self, name: str, split: SplitSpec, card: DataCard) -> Meta:
        roles = {"user": self.columns.user, "item": self.columns.item}
        roles |= {"time": self.columns.time} if self.columns.time is not None else {}
        roles |= {"order": self.columns.order} if self.columns.order is not None else {}
        return Meta(
            name=name,
            num_users=card.users,
            num_items=card.items,
            num_events=card.events,
            has_time=self.columns.time is not None,
            time_range=card.time_range,
            actions=self.actions,
            strengths=self.columns.strengths,
            split=split,
            fingerprint=card.fingerprint,
            simulated=self.simulated,
            columns=roles,
            card=card.model_dump(mode="json"),
        )

    def _events(self, folder: Path, report: Report) -> tuple[Spool, int]:
        """Return the columns of the kept events, and how many neighbouring events of a user have equal keys."""
        source, strengths = self.ordered.spool, self.columns.strengths
        types: dict[str, Any] = {"item": np.int32}
        types |= {"timestamp": np.int64} if self.columns.time is not None else {}
        types |= {"action": np.int64} if self.actions else {}
        types |= {f"strength_{name}": np.float32 for name in strengths}
        target = Spool(folder, types)
        number = (np.cumsum(self.kept.items) - 1).astype(np.int32)
        tied, last = 0, (-1, 0)
        for start, rows in source.chunks():
            report("writing", start, source.rows)
            alive = self.kept.users[rows["user"]] & self.kept.items[rows["item"]]
            kept = rows if alive.all() else {name: values[alive] for name, values in rows.items()}
            if not len(kept["user"]):
                continue
            user, key = np.append(last[0], kept["user"]), np.append(last[1], kept["key"])
            tied += int(np.count_nonzero((user[1:] == user[:-1]) & (key[1:] == key[:-1])))
            last = int(user[-1]), int(key[-1])
            final = {**kept, "item": number[kept["item"]], "timestamp": kept["key"] // SECOND}
            final |= {f"strength_{name}": kept[f"strength{n}"] for n, name in enumerate(strengths)}
            target.append({name: final[name] for name in types})
        source.remove()
        return target, tied

    def _card(
        self, split: Split, offsets: Rows, items: npt.NDArray[np.int32], events: Spool, tied: int, mark: str
    ) -> DataCard:
        lengths, num_items = np.diff(offsets), self.items.table.num_rows
        repeated = repeats(offsets, items)
        neighbours = max(1, int((lengths - 1).sum()))
        return DataCard(
            inputs=tuple(str(path) for path in self.inputs),
            columns=tuple(self.columns.describe()),
            notes=(
                *(["simulated data: nothing here is real"] if self.simulated else []),
                *self.encoded.notes,
                *_notes(self.columns, split),
            ),
            rows_read=self.encoded.rows_read,
            incomplete_rows=self.encoded.incomplete,
            merged_duplicates=self.ordered.duplicates,
            out_of_order=self.ordered.out_of_order,
            filters=self.kept.removed,
            filter_rounds=self.kept.rounds,
            users=len(lengths),
            items=num_items,
            events=events.rows,
            density=(events.rows - repeated) / (len(lengths) * num_items),
            length_mean=float(lengths.mean()),
            length_quantiles=quantiles(lengths),
            one_event_users=int(np.count_nonzero(lengths == 1)),
            item_count_quantiles=quantiles(self.kept.item_events[self.kept.items]),
            time_range=_range(events),
            tied_share=None if self.columns.key is None else tied / neighbours,
            repeat_share=repeated / events.rows,
            actions=_action_counts(events, self.actions),
            strengths={name: _strength(events, name) for name in self.columns.strengths},
            item_features=self.items.card,
            user_features=self.users.card,
            split=split_card(split, offsets, items),
            fingerprint=mark,
        )


def _notes(columns: Columns, split: Split) -> list[str]:
    notes = []
    if columns.key is None:
        notes.append("no time or order column: events are in the order of the rows; name one with --time or --order")
    for name, chosen in (("validation", split.validation), ("test", split.test)):
        if not len(chosen):
            notes.append(f"the {name} set is empty under {split.spec.kind}: nothing can be measured on it")
    return notes


def _range(events: Spool) -> tuple[int, int] | None:
    if "timestamp" not in events.types:
        return None
    found = [(rows["timestamp"].min(), rows["timestamp"].max()) for _, rows in events.chunks("timestamp")]
    return int(min(low for low, _ in found)), int(max(high for _, high in found))


def _action_counts(events: Spool, actions: tuple[str, ...]) -> dict[str, int]:
    counts = dict.fromkeys(actions, 0)
    for _, rows in events.chunks("action") if actions else ():
        for bit, name in enumerate(actions):
            counts[name] += int(np.count_nonzero(rows["action"] >> bit & 1))
    return counts


def _strength(events: Spool, name: str) -> dict[str, float | None]:
    count, total, low, high = 0, 0.0, np.inf, -np.inf
    for _, rows in events.chunks(f"strength_{name}"):
        given = rows[f"strength_{name}"]
        given = given[~np.isnan(given)]
        count, total = count + len(given), total + float(given.sum(dtype=np.float64))
        low, high = min(low, given.min(initial=np.inf)), max(high, given.max(initial=-np.inf))
    if not count:
        return {"share": 0.0, "mean": None, "min": None, "max": None}
    return {"share": count / events.rows, "mean": total / count, "min": float(low), "max": float(high)}
