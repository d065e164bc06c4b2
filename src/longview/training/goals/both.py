"""Both: one body learns which item comes next and what comes of candidates, in one pass over each history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.requests import RequestBatches
from longview.evaluation.evaluate import Which
from longview.models.ranker import Ranker
from longview.models.retriever import Retriever
from longview.training.goals.goal import AnyReport, Baselines, Loss
from longview.training.goals.ranking import RankingGoal, weighted
from longview.training.goals.retrieval import RetrievalGoal
from longview.training.objective import Objective


class BothLoss:
    """The weighted sum of the softmax loss over next items and of the tasks' losses, from one pass of the body.

    A history comes back with every later request of its user, so next items are learned at its newest events alone:
    each event about once an epoch.
    """

    terms = 1  # a sum of means over different labels: `distributed` refuses it

    def __init__(self, softmax: Objective, retrieval_weight: float, ranking_weight: float) -> None:
        self.softmax, self.weights = softmax, (retrieval_weight, ranking_weight)

    def loss(self, model: Ranker, batch: JaggedBatch) -> Tensor:
        """Return the loss of `batch`, whose targets are −1 where an event trains no query."""
        assert batch.targets is not None, "training batches carry targets"
        hidden = model.hidden(batch)
        found = model.queries_of(hidden)
        targets = found.of(batch.targets)
        trained = torch.nonzero(targets >= 0).squeeze(1)
        total = self.weights[1] * weighted(model.outputs_of(hidden, batch), batch, model.tasks)
        if trained.numel():  # none where every history of the batch is empty
            queries = found.vectors.index_select(0, trained)
            total = total + self.weights[0] * self.softmax.of_queries(model, queries, targets[trained])
        return total

    def generators(self) -> tuple[torch.Generator, ...]:
        """Return those of the negatives."""
        return self.softmax.generators()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the negatives."""
        return self.softmax.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        self.softmax.load_tensors(tensors)


class BothGoal(RankingGoal):
    """Retrieval first, then ranking; the best epoch is chosen by a metric of either."""

    def check(self) -> None:
        self._require_validation()
        super().check()

    def validation_metrics(self) -> list[str]:
        return [
            *super().validation_metrics(),
            "mrr",
            *(f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (1, 5, 10, 20)),
        ]

    def batches(self) -> RequestBatches:
        return self._batches(next_items=True)

    def objective(self, device: torch.device) -> Loss:
        config, weights = self.config, self.config.ranking
        sparse = config.optimiser.tables == "rowwise"
        softmax = Objective(config.loss, self.data, device=device, seed=config.loop.seed + 1, sparse=sparse)
        return BothLoss(softmax, weights.retrieval_weight, weights.weight)

    def validate(self, model: Retriever, device: torch.device) -> dict[str, float]:
        return {**self._retrieval().validate(model, device), **super().validate(model, device)}

    def reports(self, model: Retriever, which: Which, device: torch.device) -> list[AnyReport]:
        return [*self._retrieval().reports(model, which, device), *super().reports(model, which, device)]

    def baselines(self, which: Which, started: Callable[[str], None] | None = None) -> list[Baselines]:
        return [*self._retrieval().baselines(which, started), *super().baselines(which, started)]

    def _retrieval(self) -> RetrievalGoal:
        loop = self.config.loop.model_copy(update={"metric": "ndcg@10"})
        return RetrievalGoal(self.config.model_copy(update={"loop": loop}), self.data, self.schema)
