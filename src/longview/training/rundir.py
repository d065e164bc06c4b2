"""The run directory, which is also the model directory: everything `recommend` needs, and nothing is executed.

* `config.json`: the `RunConfig`.  * `model.safetensors`: the best weights.
* `items.arrow`: the catalogue in the order of the model's indices (external id, title, features);
  `users.arrow`: external ids.
* `data.json`: path, fingerprint, split and sizes of the data set trained on; what the model reads of it (`schema`)
  and what it predicts of candidates (`tasks`).
* `result.json`, `card.md`, `curves.png`, `log.jsonl`: what came out.  * `checkpoint/`: to resume.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from longview.config import parse
from longview.data.dataset import IdMap, PreparedData, write_arrow
from longview.data.labels import Task
from longview.data.meta import SplitSpec
from longview.data.schema import Schema
from longview.errors import InputError
from longview.files import atomic_file, write_json
from longview.models.retriever import Retriever
from longview.training.build import build_model
from longview.training.config import RunConfig
from longview.training.weights import REMEDY, load_weights, save_weights

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class LoadedRun:
    """A model as trained, with what it takes to use it.

    `data` holds `path`, `name`, `fingerprint`, `split`, `num_users`, `num_items`, `actions`; `result` is None
    while training.
    """

    path: Path
    model: Retriever
    config: RunConfig
    items: pa.Table
    item_ids: IdMap
    user_ids: IdMap
    data: dict[str, Any]
    result: dict[str, Any] | None
    schema: Schema = field(default_factory=Schema)
    tasks: tuple[Task, ...] = ()

    def check_data(self, data: PreparedData) -> None:
        """Refuse a data set other than the one trained on.

        Raises:
            InputError: the fingerprints differ.
        """
        check_fingerprint(self.path, self.data, data)

    def open_data(self, path: str | Path | None = None) -> PreparedData:
        """Open the data set trained on, at `path` where it has moved.

        Raises:
            InputError: it is not there, or is another one.
        """
        recorded = path or self.data["path"]
        if recorded is None:
            raise InputError(f"{self.path}: trained on data that was not on disk; give the data set's directory")
        if path is None and not Path(recorded).exists():
            raise InputError(
                f"{self.path}: its data set is no longer at {recorded}; say where it is: --data (data=... in Python)"
            )
        data = PreparedData.open(recorded)
        self.check_data(data)
        return data


def check_fingerprint(run: Path, recorded: dict[str, Any], data: PreparedData) -> None:
    """Refuse `data` where it is not the data set `recorded` in the run directory `run`."""
    where = data.path or "the data"
    if data.fingerprint != recorded["fingerprint"]:
        raise InputError(
            f"{run}: trained on {recorded['name']} (fingerprint {recorded['fingerprint']}) but {where} "
            f"is {data.meta.name} (fingerprint {data.fingerprint}); results would not be comparable: use the data set "
            f"at {recorded['path']}, or train a new model"
        )


def start_run(
    out: Path, config: RunConfig, data: PreparedData, schema: Schema | None = None, tasks: Sequence[Task] = ()
) -> None:
    """Write what is known of a run before training: config, ids, data reference, what is read and predicted of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("users", data.users.select(["id"])), ("items", data.item_table)):
        with atomic_file(out / f"{name}.arrow") as work:
            write_arrow(work, table)
    values = describe_data(data)
    values["schema"] = (schema or Schema()).model_dump(mode="json")
    values["tasks"] = [task.model_dump(mode="json") for task in tasks]
    write_json(out / "data.json", values)
    write_json(out / "config.json", {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")})


def describe_data(data: PreparedData) -> dict[str, Any]:
    """Return what a run records of its data set."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": None if data.path is None else str(Path(data.path).resolve()),
        "name": data.meta.name,
        "fingerprint": data.fingerprint,
        "split": data.split.spec.model_dump(mode="json"),
        "num_users": data.num_users,
        "num_items": data.num_items,
        "actions": list(data.meta.actions),
        "simulated": data.meta.simulated,
    }


def save_model(out: Path, model: Retriever, *, epoch: int = 0) -> None:
    """Write the weights of `model` to the run directory `out`, atomically."""
    save_weights(out / WEIGHTS, model, epoch=str(epoch))


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> LoadedRun:
    """Load the model in run directory `path` onto `device`, in eval mode, whatever device trained it.

    Raises:
        InputError: no run directory, one that is truncated or was written by something else, an unknown config
            key, or weights that do not fit the config; the message names the file.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; {REMEDY}")
    config = read_config(path)
    data = read_json(path / "data.json")
    parse(SplitSpec, data.get("split", {}), str(path / "data.json"))
    items, users = (_read_table(path / f"{name}.arrow") for name in ("items", "users"))
    item_ids, user_ids = (IdMap(table["id"].combine_chunks()) for table in (items, users))
    if (len(item_ids), len(user_ids)) != (data.get("num_items"), data.get("num_users")):
        raise InputError(f"{path}: the id files do not have the sizes data.json says; {REMEDY}")
    schema, tasks = _inputs(data, path / "data.json")
    model = build_model(config, len(item_ids), data.get("actions", ()), schema, tasks)
    load_weights(path / WEIGHTS, model)
    result = path / "result.json"
    return LoadedRun(
        path=path,
        model=model.to(device).eval(),
        config=config,
        items=items,
        item_ids=item_ids,
        user_ids=user_ids,
        data=data,
        schema=schema,
        tasks=tasks,
        result=read_json(result) if result.exists() else None,
    )


def read_config(path: Path) -> RunConfig:
    """Return the configuration of the run directory `path`.

    Raises:
        InputError: missing, damaged, of another version or of images, or with an unknown key.
    """
    values = read_json(path / "config.json")
    if values.get("task") == "images":
        raise InputError(f"{path}: a run on images, not on logs: use `longview evaluate` or `longview embed`")
    return parse(RunConfig, {k: v for k, v in values.items() if k != "schema_version"}, str(path / "config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object of a run directory's `file`.

    Raises:
        InputError: missing, damaged, or of another schema version.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent}: not a run directory (no {file.name}); {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error}); {REMEDY}") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{file}: not schema version {SCHEMA_VERSION} of a run directory; {REMEDY}")
    return values


def _inputs(data: dict[str, Any], where: Path) -> tuple[Schema, tuple[Task, ...]]:
    """Return what the model of a run reads and predicts; runs of before it was recorded read items and times alone."""
    tasks = data.get("tasks", [])
    return parse(Schema, data.get("schema", {}), str(where)), tuple(parse(Task, task, str(where)) for task in tasks)


def _read_table(file: Path) -> pa.Table:
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        table["id"]
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: missing or damaged ({error}); {REMEDY}") from None
    return table
