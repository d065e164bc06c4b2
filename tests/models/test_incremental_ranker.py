"""A ranking model scores candidates against a kept state as it does behind the whole history, context and all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longview.data.labels import Task
from longview.data.schema import Feature, Schema
from longview.errors import InputError
from longview.models.heads import HeadConfig
from longview.models.incremental import Incremental
from longview.models.ranker import Ranker
from longview.models.retriever import RetrieverConfig
from longview.ops.jagged import offsets_from_lengths
from tests.models.histories import ACTIONS, NUM_ITEMS, WINDOW, build, histories, piece, together

STREAMS = {"consumption": {"actions": ["view", "none"]}, "engagement": {"actions": ["like", "buy"]}}
BODIES = {
    "prefix": {"attention": WINDOW},
    "truncated": {"attention": WINDOW, "truncation": {"length": 6, "layers": 1, "positions": True}},
    "two stages": {"attention": WINDOW, "truncation": {"length": 6, "layers": 1, "targets": "second"}},
    "streams": {"attention": WINDOW, "streams": STREAMS},
}
HISTORIES, COUNTS = histories([23, 1, 40, 7]), [3, 0, 9, 2]
CONTEXT = torch.tensor([[1, 0], [2, 1], [0, 0], [1, 2]])


def ranker(body: dict[str, object], *, retrieves: bool = False) -> Ranker:
    torch.manual_seed(0)
    features = tuple(Feature(name=name, values=("a", "b")) for name in ("taste", "country"))
    embedding = {"positions": "start", "time_gaps": "previous", "actions": "sum", "context": ("taste", "country")}
    values = {"width": 16, "heads": 2, "max_length": 64, "layer": {"scale_length": 1}, "embedding": embedding, **body}
    config = RetrieverConfig.model_validate(values)
    tasks = [Task(name=name, action=name, mean=0.3, deviation=0.4) for name in ("like", "buy")]
    schema = Schema(actions=ACTIONS, context=features)
    made = Ranker(config, HeadConfig(), NUM_ITEMS, tasks, ACTIONS, schema, retrieves=retrieves).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("body", BODIES)
def test_predictions_equal_those_behind_the_whole_history(body: str) -> None:
    model = ranker(BODIES[body])
    asked = []
    for history, drawn in zip(HISTORIES, histories(COUNTS, seed=5), strict=True):
        assert history.timestamps is not None
        asked.append(replace(drawn, timestamps=torch.full((drawn.num_tokens,), int(history.timestamps[-1]) + 60)))
    whole = together([part for pair in zip(HISTORIES, asked, strict=True) for part in pair])
    lengths = [history.num_tokens + count for history, count in zip(HISTORIES, COUNTS, strict=True)]
    offsets = offsets_from_lengths(torch.tensor(lengths))
    whole = replace(whole, offsets=offsets, target_lengths=torch.tensor(COUNTS), context=CONTEXT)
    expected = model.predict(whole)

    incremental = Incremental(model)
    state = incremental.prefill(replace(together([piece(h, 0, h.num_tokens // 2) for h in HISTORIES]), context=CONTEXT))
    state = incremental.append(state, together([piece(h, h.num_tokens // 2) for h in HISTORIES]))
    found = incremental.predict(state, together(asked), micro_batch=4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_vectors_of_a_model_with_context_are_its_user_vectors() -> None:
    model = ranker(BODIES["truncated"], retrieves=True)
    batch = replace(together(HISTORIES), context=CONTEXT)
    incremental = Incremental(model)
    torch.testing.assert_close(incremental.vectors(incremental.prefill(batch)), model.user_vectors(batch))


def test_each_side_refuses_what_it_was_not_trained_for() -> None:
    incremental = Incremental(ranker(BODIES["prefix"]))
    state = incremental.prefill(replace(together(HISTORIES), context=CONTEXT))
    with pytest.raises(InputError, match="use predict"):
        incremental.vectors(state)
    plain = Incremental(build(embedding={"positions": False}, attention=WINDOW))
    with pytest.raises(InputError, match="no head"):
        plain.predict(plain.prefill(HISTORIES[0]), piece(HISTORIES[0], 0, 2))
