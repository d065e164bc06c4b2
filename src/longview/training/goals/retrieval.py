"""Retrieval: which item comes next, out of the whole catalogue."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from longview.data.actions import bits_of
from longview.data.batches import TrainingBatches
from longview.data.stochastic_length import StochasticLengthConfig
from longview.errors import InputError
from longview.evaluation import evaluate
from longview.evaluation.baselines import evaluate_baselines
from longview.evaluation.evaluate import Which
from longview.models.retriever import Retriever
from longview.training.distributed import share
from longview.training.goals.goal import AnyReport, Baselines, Goal, Loss
from longview.training.objective import Objective


class RetrievalGoal(Goal):
    """Next-item prediction at every position of a history."""

    def check(self) -> None:
        metric_k(self.config.loop.metric)
        self._require_validation()
        self._target_actions()

    def batches(self) -> TrainingBatches:
        config = self.config
        return TrainingBatches(
            self.data,
            max_length=config.model.max_length,
            inputs=self.inputs,
            target_actions=self._target_actions(),
            seed=config.loop.seed,
            share=share(),
            **{**dict(config.batches), "stochastic_length": self._stochastic_length()},
        )

    def _target_actions(self) -> int:
        return bits_of(self.config.loss.actions, self.data.meta.actions, "loss.actions")

    def _stochastic_length(self) -> StochasticLengthConfig | None:
        """Return the configuration with the load of this model's attention: linear in the length, or quadratic."""
        chosen, model = self.config.batches.stochastic_length, self.config.model
        if chosen is None or chosen.gamma is not None:
            return chosen
        linear = model.kind == "hstu" and model.attention.local_window > 0
        return chosen.model_copy(update={"gamma": 1.0 if linear else 2.0})

    def objective(self, device: torch.device) -> Loss:
        config = self.config
        sparse = config.optimiser.tables == "rowwise"
        return Objective(config.loss, self.data, device=device, seed=config.loop.seed + 1, sparse=sparse)

    def validate(self, model: Retriever, device: torch.device) -> dict[str, float]:
        ks = sorted({1, 5, 10, 20, *metric_k(self.config.loop.metric)})
        return evaluate(model, self.data, "validation", ks=ks, device=device, resamples=0).metrics

    def reports(self, model: Retriever, which: Which, device: torch.device) -> list[AnyReport]:
        return [evaluate(model, self.data, which, device=device, name=self.config.name)]

    def baselines(self, which: Which, started: Callable[[str], None] | None = None) -> list[Baselines]:
        found = evaluate_baselines(self.data, which, started=started)
        return [Baselines(list(found.reports), found.skipped)]


def metric_k(metric: str) -> list[int]:
    """Return the K of a metric's name, as a list; nothing for `mrr`.

    Raises:
        InputError: not a metric of retrieval.
    """
    match = re.fullmatch(r"(?:hr|ndcg|mrr)@([1-9]\d*)|mrr", metric)
    if match is None:
        raise InputError(f"loop.metric {metric!r} is not a validation metric: use hr@K, ndcg@K, mrr@K or mrr")
    return [int(match[1])] if match[1] else []
