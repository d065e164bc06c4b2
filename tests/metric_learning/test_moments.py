"""Moments of a batch and their noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.metric_learning import batch_moments, moments


def test_moments_are_the_biased_ones() -> None:
    rows = torch.randn(10, 3, dtype=torch.float64)
    mean, std = batch_moments(rows).values
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(std, rows.std(0, correction=0))


def test_a_collapsed_dimension_has_the_floor() -> None:
    assert batch_moments(torch.ones(4, 2), floor=1e-3).values[1].tolist() == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize(("classes", "samples"), [(4, 4), (16, 4), (12, 1)])
def test_the_noise_is_what_batches_vary_by(classes: int, samples: int) -> None:
    """σ_between²/P + σ_within²/(P·K), met by the average over many batches; so is the variance of the means."""
    source = torch.Generator().manual_seed(0)
    between, within, noise, means, variances = 1.0, 0.5, [], [], []
    for _ in range(3000):
        centres = between * torch.randn(classes, 2, generator=source, dtype=torch.float64)
        rows = centres.repeat_interleave(samples, 0)
        rows = rows + within * torch.randn(rows.shape, generator=source, dtype=torch.float64)
        found = batch_moments(rows, torch.arange(classes).repeat_interleave(samples))
        assert found.noise is not None
        noise.append(found.noise)
        means.append(found.values[0])
        variances.append(found.values[1].square())
    expected = between**2 / classes + within**2 / (classes * samples)
    averages = torch.stack(noise).mean(0)
    assert averages[0].tolist() == pytest.approx([expected] * 2, rel=0.08)
    assert torch.stack(means).var(0).tolist() == pytest.approx([expected] * 2, rel=0.1)
    assert averages[1].tolist() == pytest.approx(
        torch.stack(variances).var(0).tolist(), rel=0.4
    )  # low by a third for four classes


def test_one_class_says_nothing_of_the_population() -> None:
    noise = batch_moments(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)).noise
    assert noise is not None
    assert torch.isinf(noise).all()


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_noise_depends_on_classes_not_on_order_or_names(seed: int, rows: int) -> None:
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 3, generator=source, dtype=torch.float64)
    labels = torch.randint(3, (rows,), generator=source)
    order = torch.randperm(rows, generator=source)
    one, other = batch_moments(z, labels), batch_moments(z[order], 7 * labels[order] + 2)
    torch.testing.assert_close(one.noise, other.noise)


def test_large_batches_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = torch.randn(50, 3, dtype=torch.float64), torch.randint(7, (50,))
    whole = batch_moments(z, labels)
    monkeypatch.setattr(moments, "ROWS", 8)
    torch.testing.assert_close(batch_moments(z, labels).noise, whole.noise)
