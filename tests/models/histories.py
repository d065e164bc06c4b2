"""Histories for tests of models: a few users of different lengths, with times and actions."""

from __future__ import annotations

import torch

from longview.data.batches import JaggedBatch
from longview.models.retriever import Retriever, RetrieverConfig
from longview.ops.jagged import offsets_from_lengths

NUM_ITEMS = 12
ACTIONS = ("view", "like", "buy")
WINDOW = {"local_window": 5, "global_size": 3, "target_scope": "semi_local"}


def build(*, double: bool = True, **options: object) -> Retriever:
    """Return a small model in evaluation mode, with no weight at a value where an error would not show."""
    torch.manual_seed(0)
    values = {"width": 16, "heads": 2, "max_length": 64, "layer": {"scale_length": 1}, **options}
    model = RetrieverConfig.model_validate(values).build(NUM_ITEMS, ACTIONS).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double() if double else model


def histories(lengths: list[int], seed: int = 1) -> list[JaggedBatch]:
    """Return one history each; action 0 is an event without any."""
    generator = torch.Generator().manual_seed(seed)
    return [
        JaggedBatch(
            items=torch.randint(0, NUM_ITEMS, (n,), generator=generator),
            offsets=torch.tensor([0, n]),
            timestamps=torch.randint(1, 20_000, (n,), generator=generator).cumsum(0),
            actions=torch.randint(0, 8, (n,), generator=generator),
        )
        for n in lengths
    ]


def piece(history: JaggedBatch, start: int, stop: int | None = None) -> JaggedBatch:
    """Return events `start:stop` of one history."""
    rows = slice(start, stop)
    items, times, actions = history.items[rows], history.timestamps, history.actions
    assert times is not None
    assert actions is not None
    return JaggedBatch(items, torch.tensor([0, items.numel()]), times[rows], actions[rows])


def together(parts: list[JaggedBatch]) -> JaggedBatch:
    """Return histories as one batch."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("items", "timestamps", "actions")}
    return JaggedBatch(offsets=offsets_from_lengths(torch.tensor([part.num_tokens for part in parts])), **columns)
