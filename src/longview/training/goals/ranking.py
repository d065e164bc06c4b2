"""Ranking: what comes of each candidate of a request, a probability an action and perhaps an amount."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.labels import Task, resolve_tasks
from longview.data.requests import RequestBatches
from longview.data.schema import Schema
from longview.errors import InputError, suggestion
from longview.evaluation.evaluate import Which
from longview.evaluation.impression_report import ImpressionReport
from longview.evaluation.impressions import RankingProtocol, measure, split_impressions
from longview.evaluation.request_baselines import evaluate_request_baselines
from longview.evaluation.requests import evaluate_requests
from longview.models.heads import task_losses
from longview.models.ranker import Ranker
from longview.models.retriever import Retriever
from longview.training.config import RunConfig
from longview.training.goals.goal import AnyReport, Baselines, Goal, Loss


class RankingLoss:
    """The weighted sum of the tasks' losses."""

    terms = 1  # a sum of means over different labels: `distributed` refuses it

    def loss(self, model: Ranker, batch: JaggedBatch) -> Tensor:
        """Return the loss of the candidates of `batch`."""
        return weighted(model.outputs(batch), batch, model.tasks)

    def generators(self) -> tuple[torch.Generator, ...]:
        """Return nothing: only dropout is random."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing to keep."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Nothing was kept."""


def weighted(outputs: Tensor, batch: JaggedBatch, tasks: tuple[Task, ...]) -> Tensor:
    """Return the sum over tasks of weight times mean loss, a scalar."""
    assert batch.labels is not None, "training batches carry labels"
    losses = task_losses(outputs, batch.labels, tasks)
    return sum((task.weight * losses[number] for number, task in enumerate(tasks)), losses.new_zeros(()))


class RankingGoal(Goal):
    """A multi-task head over the candidates of requests."""

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        schema: Schema | None = None,
        tasks: tuple[Task, ...] | None = None,
    ) -> None:
        super().__init__(config, data, schema, tasks or resolve_tasks(config.ranking.tasks, data))
        self.protocol = RankingProtocol(self.tasks, config.ranking.request_size, config.ranking.sampled)

    def check(self) -> None:
        """See `Goal.check`; also refuses a task of which training shows one class only."""
        for task in self.tasks:
            # Sampled candidates are negatives of every action, so only the lack of positives stays hopeless.
            if task.kind == "binary" and (task.mean == 0 or (task.mean == 1 and not self.config.ranking.sampled)):
                remedy = ", or sample candidates to which nothing happened: ranking.sampled=4" if task.mean else ""
                raise InputError(
                    f"{self.data.meta.name}: task {task.name!r} is {'always' if task.mean else 'never'} the case in "
                    f"training, so there is nothing to learn; choose other ranking.tasks{remedy}"
                )
        batches = self.config.batches
        if batches.windows != "latest" or batches.shuffle_ties:
            raise InputError(
                f"batches.windows {batches.windows} and shuffle_ties {str(batches.shuffle_ties).lower()} are for task "
                "retrieval: every event of the training part is a candidate of one request; leave them out"
            )
        if batches.stochastic_length is not None:
            raise InputError(
                "batches.stochastic_length is for task retrieval, where a history is trained on at every event; leave "
                "it out, or shorten histories by model.max_length"
            )
        self._check_metric(self.validation_metrics())

    def validation_metrics(self) -> list[str]:
        """Return the names of what can be measured on validation."""
        shown = split_impressions(self.data, "validation", self.protocol)
        return list(measure(shown, shown.constant([task.mean for task in self.tasks])))

    def batches(self) -> RequestBatches:
        return self._batches(next_items=False)

    def objective(self, device: torch.device) -> Loss:
        return RankingLoss()

    def validate(self, model: Retriever, device: torch.device) -> dict[str, float]:
        return self._report(model, "validation", device, resamples=0).metrics

    def reports(self, model: Retriever, which: Which, device: torch.device) -> list[AnyReport]:
        return [self._report(model, which, device, resamples=1000)]

    def baselines(self, which: Which, started: Callable[[str], None] | None = None) -> list[Baselines]:
        return [Baselines(list(evaluate_request_baselines(self.data, which, self.protocol, started=started)))]

    def _report(self, model: Retriever, which: Which, device: torch.device, resamples: int) -> ImpressionReport:
        assert isinstance(model, Ranker), "a ranking goal builds rankers"
        return evaluate_requests(
            model, self.data, which, self.protocol, inputs=self.inputs, device=device, resamples=resamples,
            name=self.config.name,
        )  # fmt: skip

    def _batches(self, *, next_items: bool) -> RequestBatches:
        config = self.config
        return RequestBatches(
            self.data,
            self.tasks,
            size=config.ranking.request_size,
            sampled=config.ranking.sampled,
            max_length=config.model.max_length,
            batch_size=config.batches.batch_size,
            token_budget=config.batches.token_budget,
            next_items=next_items,
            inputs=self.inputs,
            seed=config.loop.seed,
        )

    def _check_metric(self, known: list[str]) -> None:
        metric = self.config.loop.metric
        if metric not in known:
            raise InputError(
                f"loop.metric {metric!r} is not measured on validation{suggestion(metric, known)}; "
                f"there are: {', '.join(known)}"
            )
