"""Batches without files: the same histories, made when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from longview.data.simulator.lifelong import histories, history_batch, make_catalogue, request_batch
from longview.errors import InputError
from tests.data.simulator.lifelong.worlds import tiny

CONFIG = tiny()


def test_a_training_batch_is_the_histories_with_what_comes_next() -> None:
    made = histories(CONFIG, 3, 2)
    batch = history_batch(CONFIG, 3, 2, catalogue=make_catalogue(CONFIG))
    assert batch.offsets.tolist() == [0, 599, 1_198]
    assert batch.targets is not None
    items = torch.from_numpy(made.public_items.astype(np.int64)).view(2, 600)
    assert torch.equal(batch.items.view(2, 599), items[:, :-1])
    assert torch.equal(batch.targets.view(2, 599), items[:, 1:])
    assert batch.timestamps is not None
    assert torch.equal(batch.timestamps.view(2, 599), torch.from_numpy(made.time).view(2, 600)[:, :-1])


def test_a_request_is_the_last_event_and_what_precedes_it() -> None:
    made = histories(CONFIG, 0, 4)
    last = made.offsets[1:] - 1
    request = request_batch(CONFIG, 0, 4, max_length=50)
    assert request.histories.num_tokens == 200
    assert request.target.tolist() == made.public_items[last].tolist()
    assert request.histories.items[49] == made.public_items[last[0] - 1]
    np.testing.assert_array_equal(request.distance, made.distance[last])
    narrow = request_batch(CONFIG, 0, 4, window=64)
    assert (narrow.oracle.probability <= request.oracle.probability + 1).all()
    assert len(narrow.oracle.probability) == 4


def test_people_beyond_those_of_the_data_set_are_new() -> None:
    assert not torch.equal(history_batch(CONFIG, 10**9, 1).items, history_batch(CONFIG, 0, 1).items)


@pytest.mark.parametrize("asked", [(-1, 1, None), (0, 0, None), (0, -4, None), (0, 1, 0)])
def test_nobody_is_refused(asked: tuple[int, int, int | None]) -> None:
    first, count, longest = asked
    with pytest.raises(InputError, match="there must be at least one user"):
        history_batch(CONFIG, first, count, max_length=longest)


def test_no_polars_is_needed() -> None:
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "from longview.data.simulator.lifelong import LifelongConfig, history_batch\n"
        "print(history_batch(LifelongConfig(max_history=300, bands=(), items=50, windows=()), 0, 2).num_tokens)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "598"
