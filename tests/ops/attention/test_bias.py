"""The relative bias: buckets of the published code, distances clamped at the end of the table."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.ops.attention import RelativeBias
from longview.ops.attention.bias import time_buckets


@given(st.integers(-(10**9), 10**9), st.integers(1, 128))
def test_buckets_are_logarithmic(difference: int, num_buckets: int) -> None:
    exact = math.log(max(abs(difference), 1)) / 0.301
    if abs(exact - round(exact)) > 1e-4:  # float32 may fall on either side of a boundary
        bucket = int(time_buckets(torch.tensor([difference]), num_buckets)[0])
        assert bucket == min(math.floor(exact), num_buckets - 1)


def test_a_bucket_does_not_depend_on_its_place() -> None:
    differences = torch.arange(3, 10**6, 97)
    together = time_buckets(differences, 64)
    assert all(torch.equal(time_buckets(differences[i : i + 7], 64), together[i : i + 7]) for i in range(0, 900, 7))


def test_differences_of_large_times_are_exact() -> None:
    now = 1_700_000_000
    bias = RelativeBias(time=torch.zeros(1, 64), timestamps=torch.tensor([now, now + 60]))
    assert bias.timestamps is not None
    assert bias.buckets(bias.timestamps[1:] - bias.timestamps[:1]).tolist() == [math.floor(math.log(60) / 0.301)]


def test_position_counts_distance_and_clamps_at_the_end() -> None:
    bias = RelativeBias(position=torch.tensor([[10.0, 11.0, 12.0]]))
    rows, columns = torch.tensor([7]), torch.tensor([3, 5, 6, 7, 8])
    assert bias.block(rows, columns).tolist() == [[[12.0, 12.0, 11.0, 10.0, 11.0]]]


def test_position_and_time_add_up_per_head() -> None:
    times = torch.tensor([0, 1, 100])
    bias = RelativeBias(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.arange(40.0).view(2, 20), times)
    tokens = torch.arange(3)
    block = bias.block(tokens, tokens)
    assert block.shape == (2, 3, 3)
    assert float(block[1, 2, 0]) == 4.0 + 20.0 + math.floor(math.log(100) / 0.301)
