"""The memory: first in first out, whole state in buffers, nothing changed by what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from longview.config import parse
from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, EmbeddingMemory, MemoryConfig
from tests.metric_learning.helpers import WIDTH, drifting, memory, same, states


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=12), st.booleans())
def test_rows_leave_in_the_order_they_came_for_any_batch_sizes(capacity: int, sizes: list[int], early: bool) -> None:
    order = "enqueue-first" if early else "normalise-first"
    bank = memory(capacity=capacity, order=order)
    came: list[int] = []
    for size in sizes:
        size = min(size, capacity)
        ids = torch.arange(len(came), len(came) + size)
        reference = bank(ids[:, None].expand(-1, WIDTH).double(), ids % 3, ids)
        visible = (came + ids.tolist() if early else came)[-capacity:]
        came += ids.tolist()
        places = bank.queue.newest()
        assert reference.sample_ids[places].tolist() == visible
        assert reference.rows[places, 0].tolist() == visible
        assert reference.labels[places].tolist() == [i % 3 for i in visible]
    assert len(bank) == min(capacity, len(came))
    assert bank.read().sample_ids[bank.queue.newest()].tolist() == came[-capacity:]


@pytest.mark.parametrize("drift", ["none", "xbn", "axbn", "moving-average"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_training_50_steps_equals_25_saved_loaded_and_25_more(drift: str, storage: str, tmp_path: Any) -> None:
    stream = drifting(50, batch=12)

    def fresh() -> tuple[torch.nn.Module, CrossBatchLoss, torch.optim.Optimizer]:
        torch.manual_seed(0)
        encoder = torch.nn.Linear(WIDTH, WIDTH)
        config = {"capacity": 100, "width": WIDTH, "drift": {"kind": drift}, "storage": storage, "warmup_steps": 5}
        return encoder, CrossBatchLoss("contrastive", parse(MemoryConfig, config, "test")), _adam(encoder)

    def train(parts: Any, batches: list[Any]) -> None:
        encoder, loss, optimiser = parts
        for x, labels, ids in batches:
            loss(encoder(x.float()), labels, ids).backward()
            optimiser.step()
            optimiser.zero_grad()

    whole, half, resumed = fresh(), fresh(), fresh()
    train(whole, stream)
    train(half, stream[:25])
    torch.save([part.state_dict() for part in half], tmp_path / "state.pt")
    for part, saved in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(saved)
    train(resumed, stream[25:])
    assert same(states(resumed[1]), states(whole[1]))
    assert same(states(resumed[0]), states(whole[0]))


def _adam(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


def test_the_whole_state_is_buffers() -> None:
    bank = memory({"kind": "axbn"})
    for batch in drifting(7):
        bank(*batch)
    other = memory({"kind": "axbn"})
    other.load_state_dict(states(bank))
    for batch in drifting(3, seed=2):
        one, two = bank(*batch), other(*batch)
        assert torch.equal(one.embeddings(), two.embeddings())
        assert torch.equal(one.ages, two.ages)
    assert same(states(copy.deepcopy(bank)), states(other))


def _good() -> dict[str, Any]:
    batch, labels, ids = drifting(1)[0]
    return {"embeddings": batch, "labels": labels, "sample_ids": ids}


def _with(key: str, row: int, value: float) -> Any:
    changed = _good()[key].clone()
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": _with("embeddings", 2, float("nan"))}, r"NaN or infinite in 1 of 8 rows of the batch \(2\)"),
        ({"embeddings": _with("embeddings", 5, float("inf"))}, r"rows of the batch \(5\)"),
        ({"embeddings": torch.zeros(8, 5)}, "width 5 do not fit a memory of width 6"),
        ({"embeddings": torch.zeros(0, 6)}, "1 rows or more"),
        ({"embeddings": torch.zeros(8, 6, dtype=torch.int64)}, "floating point"),
        ({"labels": _with("labels", 1, -1)}, r"labels are negative in 1 of 8 .*leave those samples out"),
        ({"labels": ["cat"] * 8}, r"got list; number names of classes first"),
        ({"labels": torch.zeros(8)}, r"int64 tensor of class numbers, got \(8,\) float32"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, r"\(8,\) int64, one an embedding"),
        ({"labels": None}, "got NoneType"),
        ({"embeddings": [[0.0] * 6]}, "must be a tensor .* got list"),
        ({"labels": torch.zeros(8, dtype=torch.int64, device="meta")}, "labels are on meta and the embeddings on cpu"),
        ({"labels": _with("labels", 4, -1), "sample_ids": None}, r"labels are negative in 1 of 8 .*\(4\)"),
        ({"sample_ids": _with("sample_ids", 1, -3)}, "sample_ids are negative"),
        ({"sample_ids": torch.zeros(8)}, r"sample_ids must be \(8,\) int64"),
        ({"enqueue_mask": torch.ones(8)}, r"enqueue_mask must be \(8,\) bool"),
        (
            {
                "embeddings": torch.zeros(41, 6),
                "labels": torch.zeros(41, dtype=torch.int64),
                "sample_ids": torch.arange(41),
            },
            "batch of 41 rows does not fit a memory of 40: raise capacity",
        ),
    ],
)
def test_what_is_refused_leaves_the_memory_as_it_was(change: dict[str, Any], message: str) -> None:
    bank = memory({"kind": "axbn"})
    for batch in drifting(4, seed=3):
        bank(*batch)
    before = states(bank)
    wrong = {**_good(), **change}
    with pytest.raises(InputError, match=message):
        bank(wrong.pop("embeddings"), wrong.pop("labels"), **wrong)
    assert same(states(bank), before)


def test_warm_up_teaches_the_filter_and_stores_nothing() -> None:
    bank = memory({"kind": "axbn"}, warmup_steps=3)
    stream = drifting(6)
    lengths = [len(bank(*batch)) for batch in stream]
    assert lengths == [0, 0, 0, 0, 8, 16]
    assert int(bank.drift_state.steps) == 6


def test_old_rows_are_hidden_by_the_age_limit() -> None:
    bank = memory(age_limit=2)
    for batch in drifting(5):
        reference = bank(*batch)
    assert reference.mask is not None
    assert set(reference.ages[reference.mask].tolist()) == {1, 2}
    assert set(reference.ages[~reference.mask].tolist()) == {3, 4}


def test_only_masked_in_rows_are_stored_and_moments_are_of_all() -> None:
    batch, labels, ids = drifting(1)[0]
    kept = torch.tensor([True, False] * 4)
    bank, whole = memory({"kind": "xbn"}), memory({"kind": "xbn"})
    bank(batch, labels, ids, enqueue_mask=kept)
    whole(batch, labels, ids)
    assert torch.equal(bank.read().sample_ids, ids[kept])
    assert torch.equal(bank.read().embeddings(), whole.read().embeddings()[kept])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("anchor", ["state", "batch", "memory"])
@pytest.mark.parametrize("drift", ["none", "axbn"])
def test_what_is_given_may_be_changed_afterwards(drift: str, anchor: str, masked: bool) -> None:
    bank, twin = (memory({"kind": drift, "anchor": anchor}) for _ in range(2))
    mask = torch.tensor([True, True, False, True] * 2) if masked else None
    for batch in drifting(4):
        given = [column.clone() for column in batch]
        reference = bank(*given, enqueue_mask=mask)
        for column in given:
            column.zero_()
        expected = twin(*batch, enqueue_mask=mask)
        assert torch.equal(reference.anchor_ids, expected.anchor_ids)
        assert torch.equal(reference.embeddings(), expected.embeddings())
    assert same(states(bank), states(twin))


class _Looks(TorchDispatchMode):
    """Counts operations that wait for the device, were all but the counters of `bank` on one."""

    def __init__(self, bank: EmbeddingMemory) -> None:
        super().__init__()
        counters = [part.get_buffer(name) for part in (bank, bank.queue) for name in part.host]
        self.host, self.looks = {counter.data_ptr() for counter in counters}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.looks += args[0].data_ptr() not in self.host
        if func is torch.ops.aten.index.Tensor:
            self.looks += sum(index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, {"order": "enqueue-first"}, {"age_limit": 2}, {"distributed": "sharded"}])
@pytest.mark.parametrize("drift", ["none", "xbn", "axbn", "moving-average"])
def test_a_step_waits_for_the_device_once(drift: str, settings: dict[str, Any]) -> None:
    bank = memory({"kind": drift}, **settings)
    for batch in drifting(7):
        with _Looks(bank) as seen:
            bank(*batch)
        assert seen.looks == 1
    with _Looks(bank) as seen:
        bank(*batch, enqueue_mask=torch.ones(8, dtype=torch.bool))
    assert seen.looks == 2


@pytest.mark.parametrize("drift", ["none", "xbn", "axbn"])
@pytest.mark.parametrize("anchor", ["state", "batch", "memory"])
def test_filling_gives_what_the_encoder_makes_now(drift: str, anchor: str) -> None:
    bank = memory({"kind": drift, "anchor": anchor}, capacity=30)
    for batch in drifting(3, seed=5):
        bank(*batch)
    stream = drifting(6)
    assert bank.fill(stream, encoder=lambda x: 2 * x) == 30
    reference = bank.read()
    wanted = 2 * torch.cat([batch for batch, _, _ in stream])[:30]
    assert reference.labels.tolist() == torch.cat([labels for _, labels, _ in stream])[:30].tolist()
    if drift == "none" or anchor == "state":
        torch.testing.assert_close(reference.embeddings(), wanted)
    assert not set(reference.ages.tolist()) - {0}


def test_storage_is_independent_of_compute_and_of_casts() -> None:
    bank = memory({"kind": "axbn"}, storage="bfloat16", moments="float32")
    exact = memory({"kind": "axbn"})
    for batch, labels, ids in drifting(6):
        rough, fine = bank(batch.half(), labels, ids), exact(batch, labels, ids)
    assert rough.rows.dtype == torch.bfloat16
    torch.testing.assert_close(rough.embeddings().double(), fine.embeddings(), rtol=0.02, atol=0.03)
    before = states(bank)
    bank.half()
    assert same(states(bank), before)
    bank.to(torch.float64)
    assert same(states(bank), before)


def test_samples_without_ids_are_numbered_by_the_memory() -> None:
    bank = memory(order="enqueue-first")
    batch, labels, _ = drifting(1)[0]
    first, second = bank(batch, labels), bank(batch, labels)
    assert not set(first.anchor_ids.tolist()) & set(second.anchor_ids.tolist())
    assert set(second.anchor_ids.tolist()) < set(second.sample_ids.tolist())


def test_no_gradient_and_no_graph_enter_the_memory() -> None:
    bank = memory({"kind": "axbn"})
    for batch, labels, ids in drifting(3):
        reference = bank(batch.requires_grad_(), labels, ids)
    assert not any(value.requires_grad for value in bank.state_dict().values())
    assert reference.rows.grad_fn is None


def test_backward_reads_the_rows_that_forward_read() -> None:
    """The batch enters the ring at the next step, so two steps are needed to touch what a loss has saved."""
    loss = CrossBatchLoss("info-nce", MemoryConfig(capacity=8, width=WIDTH, drift={"kind": "none"}))  # type: ignore[arg-type]
    for batch, labels, ids in drifting(4):
        z = batch.float().requires_grad_()
        value = loss(z, labels, ids)
        rows, seen = loss.memory.queue.rows.clone(), loss.memory.queue.labels.clone()
        value.backward()
    same_label = seen[None] == labels[:, None]
    again = batch.float().requires_grad_()
    anchors = functional.normalize(again, dim=1)
    expected = _info_nce(anchors, rows, same_label) + _info_nce(anchors, anchors, labels[None] == labels[:, None])
    expected.backward()
    torch.testing.assert_close(z.grad, again.grad, rtol=1e-4, atol=1e-6)


def _info_nce(anchors: Tensor, rows: Tensor, positive: Tensor) -> Tensor:
    logit = anchors @ rows.T / 0.07
    usable = positive & ~torch.eye(*positive.shape, dtype=torch.bool) if rows is anchors else positive
    negatives = logit.masked_fill(positive, -torch.inf).logsumexp(1)
    each = functional.softplus(negatives[:, None] - logit)
    return ((each * usable).sum(1) / usable.sum(1).clamp(min=1)).mean()


def test_an_unknown_policy_or_setting_is_named() -> None:
    with pytest.raises(InputError, match="capacity"):
        parse(MemoryConfig, {"capacity": 0, "width": 2}, "memory")
    with pytest.raises(InputError, match="drift"):
        parse(MemoryConfig, {"capacity": 5, "width": 2, "drift": {"kind": "xbm"}}, "memory")


def test_a_checkpoint_of_another_size_is_refused() -> None:
    bank: EmbeddingMemory = memory(capacity=10)
    with pytest.raises(RuntimeError, match="size mismatch"):
        bank.load_state_dict(states(memory(capacity=20)))
