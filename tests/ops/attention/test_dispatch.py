"""The public function: the definition on paper, the choice of backend, and what it says about bad input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longview.errors import InputError
from longview.ops import kernels
from longview.ops.attention import (
    MaskSpec,
    RelativeBias,
    available_backends,
    newest_rows_attention,
    semi_local_attention,
    why_off,
)


def inputs(**changes: Any) -> dict[str, Any]:
    """Two sequences of 2 and 3 tokens, 2 heads."""
    q = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    return {
        "q": q,
        "k": q + 1,
        "v": q * 2,
        "offsets": torch.tensor([0, 2, 5]),
        "mask": MaskSpec.causal(),
        "alpha": 0.5,
        "scale_length": 10.0,
        **changes,
    }


class TestDefinition:
    @pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
    def test_one_query_worked_out_by_hand(self, backend: Any) -> None:
        q = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])
        k = torch.tensor([[[0.5, 1.0]], [[2.0, 0.0]]])
        v = torch.tensor([[[1.0]], [[10.0]]])
        bias = RelativeBias(position=torch.tensor([[0.25, -0.5]]))
        out = semi_local_attention(
            q, k, v, torch.tensor([0, 2]), MaskSpec.causal(), alpha=2.0, scale_length=4.0, bias=bias, backend=backend
        )

        def silu(z: float) -> float:
            return z / (1 + math.exp(-z))

        newest = (silu(2.0 * 0.5 - 0.5) * 1 + silu(2.0 * 6.0 + 0.25) * 10) / 4
        assert out[:, 0, 0].tolist() == pytest.approx([silu(2.0 * 2.5 + 0.25) / 4, newest])

    def test_alpha_defaults_to_one_over_the_root_of_the_dimension(self) -> None:
        assert torch.equal(semi_local_attention(**inputs(alpha=None)), semi_local_attention(**inputs(alpha=0.5)))

    def test_head_dimensions_of_keys_and_values_may_differ(self) -> None:
        assert semi_local_attention(**inputs(v=torch.ones(5, 2, 7))).shape == (5, 2, 7)

    def test_lengths_of_any_integer_type(self) -> None:
        plain = inputs(context_lengths=torch.tensor([1, 0]), target_lengths=torch.tensor([0, 2]))
        narrow = inputs(
            context_lengths=torch.tensor([1, 0], dtype=torch.int32),
            target_lengths=torch.tensor([0, 2], dtype=torch.int32),
        )
        assert torch.equal(semi_local_attention(**plain), semi_local_attention(**narrow))


class TestBackends:
    def test_the_cpu_has_its_own(self) -> None:
        assert available_backends("cpu")[:3] == ("cpu", "dense", "reference")
        assert torch.equal(semi_local_attention(**inputs()), semi_local_attention(**inputs(backend="cpu")))

    def test_one_that_is_off_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert why_off("cpu", "cpu") is None
        assert "cuda" in str(why_off("cpu", "cuda"))
        assert why_off("triton", "cpu") == "Triton kernels need a CUDA GPU, and the tensors are on cpu"
        with pytest.raises(InputError, match=r"'triton' cannot run here: Triton kernels need a CUDA GPU"):
            semi_local_attention(**inputs(backend="triton"))

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            (
                {"bias": RelativeBias(position=torch.zeros(2, 5000))},
                "a bias table of 5000 distances is longer than 4096",
            ),
            ({name: torch.zeros(5, 2, 4).double() for name in "qkv"}, "float64 is not float32, bfloat16 or float16"),
            ({"v": torch.zeros(5, 2, 300)}, "heads of 4 and 300 are wider than 256"),
        ],
    )
    def test_the_kernels_say_what_they_do_not_do(self, changes: dict[str, Any], why: str) -> None:
        with pytest.raises(InputError, match=rf"backend 'triton' cannot do this: .*{why}; leave backend out"):
            semi_local_attention(**inputs(**changes, backend="triton"))

    def test_an_unknown_one_suggests_the_nearest(self) -> None:
        with pytest.raises(InputError, match="did you mean 'reference'"):
            semi_local_attention(**inputs(backend="refrence"))


q5 = torch.zeros(5, 2, 4)  # as in `inputs`


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(5, 8)}, r"q has shape \(5, 8\); expected \(total, heads, dimension\)"),
        ({"k": torch.zeros(5, 2, 3)}, r"k has shape \(5, 2, 3\), q \(5, 2, 4\)"),
        ({"v": torch.zeros(4, 2, 4)}, "v has 4 tokens and 2 heads, q has 5 and 2"),
        ({"v": torch.zeros(5, 1, 4)}, "v has 5 tokens and 1 heads"),
        ({"q": q5.long(), "k": q5.long(), "v": q5.long()}, "one floating dtype"),
        ({"k": q5.double()}, "k is torch.float64 and q torch.float32"),
        ({"q": q5[:, :, :0], "k": q5[:, :, :0]}, "at least 1"),
        ({"mask": "causal"}, "mask is a str; expected a MaskSpec"),
        ({"offsets": torch.tensor([0, 2, 5], dtype=torch.int32)}, "expected int64"),
        ({"offsets": torch.tensor([[0, 5]])}, r"expected int64 of shape \(batch \+ 1,\)"),
        ({"offsets": torch.tensor([0, 2, 4])}, "run from 0 to 4; expected 0 to 5"),
        ({"offsets": torch.tensor([1, 5])}, "run from 1 to 5"),
        ({"offsets": torch.tensor([0, 3, 2, 5])}, "decrease at sequence 1"),
        ({"context_lengths": torch.tensor([1])}, r"context_lengths is .* expected integers of shape \(2,\)"),
        ({"target_lengths": torch.tensor([1.0, 0.0])}, "target_lengths is torch.float32"),
        ({"target_lengths": torch.tensor([0, -1])}, "target_lengths of sequence 1 is negative"),
        (
            {"context_lengths": torch.tensor([1, 2]), "target_lengths": torch.tensor([1, 2])},
            "sequence 1 has more context and target tokens than tokens",
        ),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"scale_length": 0.0}, "scale_length is 0.0; expected a positive number"),
        ({"scale_length": -1.0}, "expected a positive number"),
        ({"bias": RelativeBias(position=torch.zeros(3, 9))}, r"bias.position has shape \(3, 9\); expected \(2 heads"),
        ({"bias": RelativeBias(time=torch.zeros(2, 9))}, "bias.time needs bias.timestamps"),
        ({"bias": RelativeBias(None, torch.zeros(2, 9), torch.zeros(4))}, r"bias.timestamps has shape \(4,\)"),
        ({"q": [[1.0]]}, "q is a list; expected a tensor"),
        ({"offsets": [0, 2, 5]}, "offsets is a list; expected a tensor"),
        ({"v": q5[:, :, :0]}, r"v has shape \(5, 2, 0\); heads and dimension must be at least 1"),
        ({"target_lengths": torch.tensor([True, False])}, "target_lengths is torch.bool"),
        ({"max_length": 2}, "max_length is 2, but a sequence has 3 tokens; leave it out"),
        ({"v": q5.to("meta")}, "v is on meta and the others on cpu; expected one device"),
        ({"offsets": torch.tensor([0, 2, 5], device="meta")}, "offsets is on meta"),
        ({"context_lengths": torch.tensor([1, 1], device="meta")}, "context_lengths is on meta"),
        ({"bias": RelativeBias(position=torch.zeros(2, 9, device="meta"))}, "bias.position is on meta"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        semi_local_attention(**inputs(**changes))


class TestNewestRows:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"backend": "dense"}, "the newest rows have no backend 'dense'; known: reference, triton"),
            ({"backend": "trition"}, r"no backend 'trition' \(did you mean 'triton'\?\)"),
            ({"backend": "triton"}, "backend 'triton' cannot run here: Triton kernels need a CUDA GPU"),
            ({"q": q5[:3, :1]}, r"q is torch.float32 \(3, 1, 4\); expected torch.float32 \(queries, 2, 4\) as k"),
            ({"q": q5[:3].to("meta")}, "q is on meta and the others on cpu"),
            ({"query_offsets": torch.tensor([0, 2, 1])}, "query_offsets do not run from 0 to 3"),
            ({"query_offsets": torch.tensor([0, 3, 3])}, "sequence 0 has more queries than tokens"),
            (
                {"query_offsets": torch.tensor([0, 3])},
                r"query_offsets is torch.int64 \(2,\); expected int64 of shape \(3,\)",
            ),
        ],
    )
    def test_bad_input_is_named(self, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        given = inputs(q=q5[:3], k=q5, v=q5, query_offsets=torch.tensor([0, 1, 3]))
        assert newest_rows_attention(**given).shape == (3, 2, 4)
        with pytest.raises(InputError, match=message):
            newest_rows_attention(**{**given, **changes})


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Forget what is known of devices, before and after."""

    def forget() -> None:
        kernels._why_not_on.cache_clear()
        kernels.capability_of.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("asked_anew")
def test_without_the_package_the_kernels_are_off_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("longview.ops.kernels.importlib.util.find_spec", lambda _: None)
    assert "triton" not in available_backends("cpu")
    with pytest.raises(InputError, match=r"the package triton is not installed.*pip install triton"):
        semi_local_attention(**inputs(backend="triton"))
    assert torch.equal(semi_local_attention(**inputs()), semi_local_attention(**inputs(backend="cpu")))


@pytest.mark.usefixtures("asked_anew")
def test_a_gpu_that_is_too_old_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert why_off("triton", "cuda") == "this GPU has compute capability 7.5; the kernels need 8.0 (Ampere)"
