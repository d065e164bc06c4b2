"""What a memory is worth while a run goes on: how far rows drift, what the correction makes good, when it hurts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning.checks import check_batch
from longview.metric_learning.cross_batch import CrossBatchLoss
from longview.metric_learning.drift import DriftState
from longview.metric_learning.moments import batch_moments

AGREEMENT = 0.5  # a memory whose gradient points further away than 60 degrees from the fresh one's is warned of


class MemoryWarning(UserWarning):
    """The memory, or its correction, makes training worse."""


class _Snapshot(NamedTuple):
    """The probe at an earlier step: embeddings (n, d) as they would be stored, and the map (2, d) of that step."""

    step: int
    embeddings: Tensor
    map: Tensor | None


class DriftDiagnostics:
    """A fixed, labelled probe set that is embedded again every so many steps, and what follows from it.

    For every age that it has seen: `cosine`, the mean of 1 - cos between a probe's embedding now and then;
    `moments`, the distance of the moments, √ of the mean over dimensions of (Δμ² + Δσ²) / σ²; and `agreement`, the
    cosine between the gradients that the probe gets from its embeddings of then and of now as a memory: what a
    row of that age teaches, compared with what it should. Each `before` and `after` the drift policy's correction.
    Beside it, since the last record: the share of the loss that came from the memory, and the filter's gain.

    Agreement at the mean age of the memory below 0.5 is warned of: this is where a memory is worse than none. So is
    a correction that leaves rows less like the current ones than they were.

    Args:
        loss: the loss of the run, with its memory.
        encoder: makes (n, d) of `inputs`; a module is put into evaluation mode for it and back.
        inputs, labels: the probe, a few hundred samples of classes with two samples or more.
        every: steps between records.
        history: earlier embeddings of the probe that are kept.
    """

    def __init__(
        self,
        loss: CrossBatchLoss,
        encoder: Callable[[Any], Tensor],
        inputs: Any,
        labels: Tensor,
        *,
        every: int = 100,
        history: int = 32,
    ) -> None:
        if every < 1 or history < 1:
            raise InputError(f"every={every}, history={history}: at least 1 each")
        if len(labels) == len(torch.unique(labels)):
            raise InputError("every probe is alone in its class: give classes with two samples or more")
        self.loss, self.encoder, self.inputs, self.labels = loss, encoder, inputs, labels
        self.every, self.history = every, history
        self.records: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self._snapshots: list[_Snapshot] = []
        self._parts: list[Tensor] = []

    def after_step(self) -> dict[str, Any] | None:
        """Note the newest loss, and every so many steps make a record, which is returned. Call after the optimiser."""
        if self.loss.parts is not None:
            self._parts.append(torch.stack(list(self.loss.parts)))
        step = int(self.loss.memory.step)
        return self.record() if step % self.every == 0 else None

    def remember(self) -> None:
        """Embed the probe for later records to compare with, and make none."""
        self._snapshots = [*self._snapshots, self._now()][-self.history :]

    @torch.no_grad()
    def record(self) -> dict[str, Any]:
        """Embed the probe and compare with its earlier embeddings; return the record."""
        memory, now = self.loss.memory, self._now()
        reference = memory.read()
        ages = (reference.ages if reference.mask is None else reference.ages[reference.mask.cpu()]).double()
        state = memory.drift_state
        record = {
            "step": now.step,
            "share_of_loss_from_memory": self._share(),
            "gain": {"mean": float(state.gain[0].mean()), "std": float(state.gain[1].mean())},
            "drift": {"mean": float(state.drift[0]), "std": float(state.drift[1])},
            "noise": dict(zip(("mean", "std"), _learned_noise(state).tolist(), strict=True)),
            "memory": {
                "rows": len(ages),
                "mean_age": float(ages.mean()) if len(ages) else 0.0,
                "max_age": int(ages.max()) if len(ages) else 0,
            },
            "by_age": [self._compare(then, now) for then in reversed(self._snapshots)],
        }
        self._snapshots = [*self._snapshots, now][-self.history :]
        self.records.append(record)
        self._warn(record)
        return record

    def report(self) -> dict[str, Any]:
        """Return everything, JSON-ready: settings, records and warnings."""
        return {
            "what": "drift of an embedding memory",
            "every": self.every,
            "probes": len(self.labels),
            "loss": self.loss.loss.loss.model_dump(),
            "memory": self.loss.memory.config.model_dump(),
            "records": self.records,
            "warnings": self.warnings,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on recording."""
        return {
            "records": self.records,
            "warnings": self.warnings,
            "snapshots": [tuple(snapshot) for snapshot in self._snapshots],
            "parts": self._parts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.records, self.warnings = list(state["records"]), list(state["warnings"])
        self._snapshots = [_Snapshot(*snapshot) for snapshot in state["snapshots"]]
        self._parts = list(state["parts"])

    @torch.no_grad()
    def _now(self) -> _Snapshot:
        """Return the probe as it is embedded now."""
        memory = self.loss.memory
        with _evaluating(self.encoder):
            raw = self.encoder(self.inputs).detach().float()
        check_batch(raw, self.labels, width=memory.config.width)
        after_l2 = self.loss.normalise and memory.config.space == "after-l2"
        here = functional.normalize(raw, dim=1) if after_l2 else raw
        scale_shift = torch.stack(memory.affine()).float() if memory.config.drift.corrects else None
        return _Snapshot(int(memory.step), here, scale_shift)

    def _compare(self, then: _Snapshot, now: _Snapshot) -> dict[str, Any]:
        """Return drift and agreement at one age, before and after correction."""
        current = self._seen(now.embeddings)
        before, after = self._seen(then.embeddings), self._corrected(then, now)
        fresh = self._gradient(current, current)
        found: dict[str, Any] = {"age": now.step - then.step}
        for name, rows in (("before", before), ("after", after)):
            found[f"cosine_{name}"] = float((1 - functional.cosine_similarity(rows, current)).mean())
            found[f"moments_{name}"] = _distance(rows, current)
            gradient = self._gradient(current, rows)
            found[f"agreement_{name}"] = float(functional.cosine_similarity(gradient, fresh, dim=0))
        return found

    def _seen(self, rows: Tensor) -> Tensor:
        """Return stored embeddings as a loss without correction sees them."""
        return functional.normalize(rows, dim=1) if self.loss.normalise else rows

    def _corrected(self, then: _Snapshot, now: _Snapshot) -> Tensor:
        rows = then.embeddings
        if then.map is not None and now.map is not None:
            rows = (rows - then.map[1]) / then.map[0] * now.map[0] + now.map[1]
        return functional.normalize(rows, dim=1) if self.loss.memory.config.normalises else rows

    def _gradient(self, anchors: Tensor, rows: Tensor) -> Tensor:
        """Return what `rows` as a memory teach the probe, (n · d,)."""
        with torch.enable_grad():
            z = anchors.detach().clone().requires_grad_()
            places = torch.arange(len(z), device=z.device)
            value = self.loss.loss(z, self.labels, rows.detach(), self.labels, own_positions=places)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return gradient.flatten()

    def _share(self) -> float | None:
        """Return the memory's part of the loss since the last record."""
        if not self._parts:
            return None
        batch, memory = torch.stack(self._parts).double().sum(0).tolist()
        self._parts = []
        return memory / (batch + memory) if batch + memory else 0.0

    def _warn(self, record: dict[str, Any]) -> None:
        by_age, age = record["by_age"], record["memory"]["mean_age"]
        if not by_age or not age:
            return
        agreement = _at_age(by_age, "agreement_after", age)
        before, after = _at_age(by_age, "cosine_before", age), _at_age(by_age, "cosine_after", age)
        if agreement < AGREEMENT:
            good = max((row["age"] for row in by_age if row["agreement_after"] >= AGREEMENT), default=0)
            remedy = f"age_limit={good}" if good else "a smaller memory, a longer warm-up or a lower learning rate"
            self._say(
                f"step {record['step']}: rows of the memory are {age:.0f} steps old on average, and what they teach "
                f"agrees with fresh rows by {agreement:.2f} only: the memory may be worse than none; try {remedy}"
            )
        if self.loss.memory.config.drift.corrects and after - before > max(0.1 * before, 0.01):
            self._say(
                f"step {record['step']}: corrected rows are further from the current ones ({after:.4f}) than they "
                f"were ({before:.4f}): batches say too little of the population; try a smaller gain, more classes a "
                "batch, or no correction"
            )

    def _say(self, message: str) -> None:
        self.warnings.append(message)
        warnings.warn(message, MemoryWarning, stacklevel=4)


def _learned_noise(state: DriftState) -> Tensor:
    """Return what batches differ by from the population, squared, (2,): 0 where the policy does not learn it."""
    return ((1 - state.gain) * state.evidence[1]).mean(1)


def _distance(rows: Tensor, current: Tensor) -> float:
    one, other = batch_moments(rows).values, batch_moments(current, floor=1e-6).values
    return math.sqrt(float(((one - other).square().sum(0) / other[1].square()).mean()))


def _at_age(by_age: list[dict[str, Any]], key: str, age: float) -> float:
    """Return the value at `age`, between the two recorded ages around it; beyond the oldest, the oldest's."""
    rows = sorted(by_age, key=lambda row: float(row["age"]))
    for younger, older in pairwise(rows):
        if younger["age"] <= age <= older["age"]:
            share = (age - younger["age"]) / (older["age"] - younger["age"])
            return float((1 - share) * younger[key] + share * older[key])
    return float(rows[0][key] if age < rows[0]["age"] else rows[-1][key])


@contextmanager
def _evaluating(encoder: Callable[[Any], Tensor]) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back as it was."""
    parts = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
