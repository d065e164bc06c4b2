"""The ranking model: the body of the retrieval model, and a multi-task head over the candidates of each request.

A sequence is `[context | history | candidates]`: all candidates of a request share one pass over its history. They see
the history and themselves, not each other, and carry their item and the time of the request alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.data.labels import Task
from longview.data.schema import Schema
from longview.errors import InputError
from longview.models.heads import HeadConfig, MultiTaskHead
from longview.models.layout import Hidden
from longview.models.retriever import Retriever, RetrieverConfig, stages
from longview.ops.jagged import history_ages, rows_where


class Ranker(Retriever):
    """A `Retriever` whose body also scores candidates.

    Args:
        config: the body.
        head: the sizes of the head.
        num_items: the catalogue.
        tasks: what is predicted, one output each.
        actions, schema: as of `Retriever`.
        retrieves: whether next items are trained too; if not, the model refuses to recommend out of the catalogue.

    Raises:
        InputError: no tasks, or layers that have no place for candidates.
    """

    def __init__(
        self,
        config: RetrieverConfig,
        head: HeadConfig,
        num_items: int,
        tasks: Sequence[Task],
        actions: Sequence[str] = (),
        schema: Schema | None = None,
        *,
        retrieves: bool = False,
    ) -> None:
        if config.kind == "sasrec":
            raise InputError("model.kind sasrec cannot rank candidates behind a history: set model.kind hstu")
        if any(attention.position_bias for attention, _ in stages(config)):
            raise InputError(
                "attention.position_bias counts the distance to each candidate, so scores would depend on their order: "
                "set model.attention.position_bias false (time_bias may stay)"
            )
        if not tasks:
            raise InputError("a ranking model needs at least one task")
        super().__init__(config, num_items, actions, schema)
        self.tasks, self.retrieves = tuple(tasks), retrieves
        self.head = MultiTaskHead(head, config.width, tasks, num_items)

    def outputs(self, batch: JaggedBatch) -> Tensor:
        """Return (candidates, tasks) float32 logits and standardised amounts, in the order of the batch."""
        return self.outputs_of(self.hidden(batch), batch)

    def outputs_of(self, hidden: Hidden, batch: JaggedBatch) -> Tensor:
        """Return `outputs` from what the stack gave for `batch`."""
        if batch.target_lengths is None:
            raise InputError("this batch has no candidates to rank: make it with longview.data.requests")
        count = int(batch.target_lengths.sum()) if batch.labels is None else batch.labels.shape[0]
        ahead = history_ages(batch.offsets, batch.num_tokens, batch.target_lengths) < 0
        items = batch.items[rows_where(ahead, count)]
        outputs: Tensor = self.head(self.final_norm(hidden.targets(count)), items)
        return outputs

    @torch.no_grad()
    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        """See `Retriever`.

        Raises:
            InputError: the model was trained to rank candidates only.
        """
        if not self.retrieves:
            raise InputError(
                "this model was trained to rank candidates, not to find items in the catalogue; "
                "train one with task: retrieval, or both"
            )
        return super().user_vectors(batch)

    @torch.no_grad()
    def predict(self, batch: JaggedBatch) -> Tensor:
        """Return (candidates, tasks) float64: the probability of each action, and amounts in the data's unit."""
        return self.head.predictions(self.outputs(batch))
