"""Learning rates by layer: the nearer to the pixels, the smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import nn

from longview.config import Config
from longview.models.encoders.encoder import ImageEncoder


class RatesConfig(Config):
    """Multipliers of the learning rate: 1 for the head, `backbone` for its last stage, × `decay` a stage below."""

    backbone: float = Field(default=1.0, gt=0, le=1, description="of the last stage")
    decay: float = Field(default=1.0, gt=0, le=1, description="from each stage to the one below it; 0.65-0.9 for a ViT")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a rate: `multiplier` × that of the run; `decays`: whether weight decay moves them."""

    name: str
    parameters: dict[str, nn.Parameter]
    multiplier: float
    decays: bool


def parameter_groups(encoder: ImageEncoder, config: RatesConfig | None = None) -> list[ParameterGroup]:
    """Return the parameters of `encoder` that learn, each in one group, from the head down to the stem.

    Biases, norms and other parameters of fewer than two dimensions do not decay (nor do tokens and positions).
    """
    config = config or RatesConfig()
    head = {f"head.{name}": parameter for name, parameter in encoder.head.named_parameters()}
    parts: list[tuple[str, dict[str, nn.Parameter], float]] = [("head", head, 1.0)]
    for below, stage in enumerate(reversed(encoder.backbone.stages())):
        own = {f"backbone.{name}": parameter for name, parameter in stage.parameters.items()}
        parts.append((stage.name, own, config.backbone * config.decay**below))
    groups = []
    for name, parameters, multiplier in parts:
        for decays in (True, False):
            chosen = {n: p for n, p in parameters.items() if p.requires_grad and _decays(n, p) is decays}
            if chosen:
                groups.append(ParameterGroup(f"{name}{'' if decays else ', no decay'}", chosen, multiplier, decays))
    return groups


def optimiser_groups(groups: Sequence[ParameterGroup], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups as a torch optimiser takes them.

    Each keeps its `multiplier`, so that a schedule sets `group["lr"] = rate_at(step) * group["multiplier"]`.
    """
    return [
        {
            "params": list(group.parameters.values()),
            "lr": rate * group.multiplier,
            "weight_decay": weight_decay if group.decays else 0.0,
            "multiplier": group.multiplier,
            "name": group.name,
        }
        for group in groups
    ]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    leaf = name.rpartition(".")[2]
    return parameter.dim() > 1 and not leaf.endswith(("bias", "token", "tokens", "embedding", "embeddings"))
