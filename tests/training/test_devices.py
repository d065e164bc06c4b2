"""Names of devices: what is none is answered with what can be chosen."""

from __future__ import annotations

import pytest
import torch

from longview.errors import InputError
from longview.training.devices import device_named


def test_a_device_by_its_name() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "near"),
    [("cdua", " (did you mean 'cuda'?)"), ("cup", " (did you mean 'cpu'?)"), ("abacus", ""), ("", "")],
)
def test_no_device_is_answered_with_those_to_choose_from(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        device_named(name)
    assert str(caught.value) == f"no device {name!r}{near}: choose cpu, cuda or one of several GPUs, cuda:N"
