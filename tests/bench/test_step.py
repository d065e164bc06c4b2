"""The training step before and after: what a kernel is part of, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from longview.bench import step_before
from longview.bench.step import PARTS, bench_step
from longview.bench.step_before import REST, by_family
from longview.bench.step_plot import draw_steps, nanoseconds
from longview.errors import InputError
from longview.evaluation.speed_table import ROWS
from longview.ops.attention import MaskSpec, semi_local_attention
from longview.ops.kernels import why_no_triton, without_kernels
from longview.ops.softmax_loss import sampled_softmax_loss


def families_of(work: Any) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        work()
    events = recorded.events()
    assert events is not None
    return by_family(events, lambda event: event.self_cpu_time_total)


def attention(q: torch.Tensor) -> torch.Tensor:
    offsets = torch.tensor([0, 40, 64])
    return semi_local_attention(q, q, q, offsets, MaskSpec.causal(), scale_length=64, backend="dense")


class TestFamilies:
    def test_attention_and_its_backward_with_padding_are_attention_alone(self) -> None:
        q = torch.randn(64, 2, 8, requires_grad=True)
        out = attention(q)
        spent = families_of(lambda: attention(q))
        assert spent.keys() <= {"attention", REST}, "the rest: its arguments are looked at"
        spent = families_of(lambda: attention(q).backward(torch.ones_like(out)))
        assert spent["attention"] > 0
        assert "products" not in spent, "products of attention are attention"
        assert "loss" not in spent

    def test_a_loss_is_a_loss(self) -> None:
        queries, items = (torch.randn(n, 8, requires_grad=True) for n in (32, 50))
        targets, negatives = torch.arange(32), torch.arange(50).view(2, 25)
        spent = families_of(lambda: sampled_softmax_loss(queries, items, targets, negatives).backward())
        assert spent["loss"] > 0
        assert {"attention", "products"}.isdisjoint(spent)

    def test_products_optimiser_and_the_rest(self) -> None:
        weight = torch.randn(8, 8, requires_grad=True)
        optimiser = torch.optim.AdamW([weight], fused=True)

        def step() -> None:
            F.silu(F.linear(torch.ones(4, 8), weight)).sum().backward()
            optimiser.step()

        assert set(families_of(step)) == {"products", "optimiser", REST}


def test_kernels_can_be_switched_off_and_come_back() -> None:
    usual = why_no_triton("cpu")
    with pytest.raises(ZeroDivisionError), without_kernels("to compare"):
        assert why_no_triton("cpu") == "to compare"
        raise ZeroDivisionError
    assert why_no_triton("cpu") == usual


def test_where_memory_forbids_a_step_it_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(step: Any, tokens: int, rounds: int) -> dict[str, Any]:
        assert why_no_triton("cpu") == "this is the step without them"
        if tokens > 256:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return {"tokens": tokens}

    monkeypatch.setattr(step_before, "_measured", measured)
    assert step_before.before(lambda tokens: lambda: None, 1024, 128, 1) == {"tokens": 256}
    assert step_before.before(lambda tokens: lambda: None, 1024, 512, 1) == {"tokens": 512, "failed": "out of memory"}


def test_another_error_of_a_step_is_not_swallowed() -> None:
    def make(tokens: int) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step_before.before(make, 1024, 128, 1)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match=f"no part 'befor'.*known: {', '.join(PARTS)}"):
        bench_step(only=["befor"])


def test_the_picture_shows_what_a_token_costs(tmp_path: Path) -> None:
    def row(length: int, speed: float) -> dict[str, Any]:
        shares = {"attention": 0.5, "products": 0.3, "idle": 0.2}
        return {"length": length, "attention": "full causal", "tokens_per_second": speed, "share_of_step": shares}

    assert nanoseconds(row(1024, 1e6)) == {"attention": 500, "products": 300, "idle": 200}
    missing = {"length": 4096, "attention": "full causal", "tokens": 4096, "failed": "out of memory"}
    result = {
        "before": [row(1024, 1e6), missing],
        "steps": [row(1024, 3e6), row(4096, 2e6)],
        "environment": {"accelerator": "a GPU"},
    }
    draw_steps(tmp_path / "steps.png", result)
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_the_kernels_give_where_it_was_measured() -> None:
    def row(name: str, full: float) -> dict[str, Any]:
        more = {"tokens_per_second": 3e6, "mfu": 0.3, "times_faster_than_full": full}
        return {"length": 1024, "attention": name, **more}

    steps = [row("full causal", 1.0), row("semi-local", 1.5)]
    measured = {"length": 1024, "attention": "semi-local", "times_faster_than_before": 7.25}
    rows = ROWS["training step on a GPU"]
    assert [one[2] for one in rows({"steps": steps})] == ["", "1.5 × full causal"]
    told = [one[2] for one in rows({"steps": steps, "before": [measured]})]
    assert told == ["", "1.5 × full causal, 7.2 × the step without kernels"]
