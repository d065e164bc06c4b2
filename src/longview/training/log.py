"""The log of a run: one JSON object a line, and TensorBoard beside it where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longview.errors import InputError
from longview.files import atomic_file


class RunLog:
    """Appends records to `log.jsonl`; each has `event` (`start`, `epoch`, `evaluation`, `stop`) and `step`.

    Args:
        directory: the run directory.
        tensorboard: also write the numbers for TensorBoard to `directory/tensorboard`.
        silent: write nothing, as all but one of several processes that train together.

    Raises:
        InputError: TensorBoard is wanted but not installed.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = False, silent: bool = False) -> None:
        self.path, self.silent = directory / "log.jsonl", silent
        self._board = _open_board(directory / "tensorboard") if tensorboard and not silent else None

    def rewind(self, step: int) -> None:
        """Drop records later than `step`: a resumed run writes them again."""
        if self.silent or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        with atomic_file(self.path) as work:
            work.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one record."""
        if self.silent:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}, ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{event}/{name.replace('@', '_at_')}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `log.jsonl`, without a last line that was cut off."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _open_board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "loop.tensorboard needs the package tensorboard: pip install 'longview[tensorboard]', or leave it off"
        ) from None
    return SummaryWriter(str(directory))
