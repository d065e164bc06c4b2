"""The configuration of a run, and the presets that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from longview.config import Config, load_yaml, override, parse
from longview.data.labels import TaskConfig
from longview.data.stochastic_length import StochasticLengthConfig
from longview.errors import InputError, suggestion
from longview.models.heads import HeadConfig
from longview.models.retriever import RetrieverConfig

PRESETS = Path(__file__).parent / "presets"
C = TypeVar("C", bound=Config)


class BatchConfig(Config):
    """How training sequences become batches, of all processes together. The history length is `model.max_length`."""

    batch_size: int | None = Field(default=128, ge=1, description="sequences a batch; null to fill token_budget")
    token_budget: int | None = Field(default=None, ge=1, description="tokens a batch, where batch_size is null")
    windows: Literal["latest", "random", "all", "shifted"] = Field(
        default="latest",
        description="which part of a longer history trains in an epoch; shifted: all of it, cut elsewhere each time",
    )
    shuffle_ties: bool = Field(default=False, description="draw the order of events of equal time anew each epoch")
    stochastic_length: StochasticLengthConfig | None = Field(
        default=None, description="cut most long histories to their newest events; null trains all of each"
    )


class LossConfig(Config):
    """Softmax over the catalogue, whole or sampled."""

    kind: Literal["full", "sampled"] = "full"
    num_negatives: int = Field(default=256, ge=1)
    negative_groups: int = Field(
        default=128,
        ge=1,
        description="runs of a batch's tokens that each share a draw of negatives",
    )
    sampling: Literal["uniform", "popularity", "in-batch"] = "uniform"
    logq: bool = Field(default=True, description="correct scores of non-uniform samples by their log probability")
    temperature: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    actions: tuple[str, ...] = Field(
        default=(), description="train only on next events with one of these actions, such as buy; empty = on all"
    )

    @field_validator("actions", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _negatives_fit(self) -> LossConfig:
        if self.actions and self.kind == "sampled" and self.sampling == "in-batch":
            raise ValueError(
                "loss.actions leaves few targets in a batch, so they are no sample of the catalogue: "
                "set loss.sampling popularity or uniform, or loss.kind full"
            )
        return self


class RankingConfig(Config):
    """What a ranking model predicts of each candidate, and how the log becomes requests (`longview.data.requests`)."""

    tasks: tuple[TaskConfig, ...] = Field(
        default=(), description="what to predict; empty: every action, and the amount of every strength"
    )
    request_size: int = Field(default=10, ge=1, description="consecutive events of a user that are one request")
    sampled: int = Field(default=0, ge=0, description="candidates drawn beside each request: nothing happened to them")
    head: HeadConfig = HeadConfig()
    weight: float = Field(default=1.0, ge=0, description="of the ranking loss where task is both")
    retrieval_weight: float = Field(default=1.0, ge=0, description="of the retrieval loss where task is both")


class OptimiserConfig(Config):
    """AdamW with linear warm-up and a decay to `min_rate_ratio` of the rate over all epochs."""

    rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    embedding_weight_decay: float | None = Field(default=None, ge=0, description="of tables; default weight_decay")
    betas: tuple[float, float] = (0.9, 0.98)
    tables: Literal["dense", "rowwise"] = Field(
        default="dense", description="rowwise: a step moves only the item rows it touched (with loss.kind sampled)"
    )
    warmup_steps: int = Field(default=100, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    min_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    average_decay: float = Field(
        default=0.0, ge=0, lt=1, description="moving average of weights that is evaluated and saved; 0 = off"
    )


class LoopConfig(Config):
    """How long to train, when to look, and what to keep."""

    epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=10, ge=1, description="evaluations without a better metric before stopping")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations on validation")
    evaluate_from: int = Field(default=0, ge=0, description="first epoch (from 1) that is evaluated")
    metric: str = "ndcg@10"
    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"
    graphs: Literal["auto", "on", "off"] = Field(
        default="auto", description="CUDA graphs: replay a step with one launch; auto = on a GPU, where the run allows"
    )
    checkpoint_every_steps: int | None = Field(default=None, ge=1, description="default: once an epoch")
    max_minutes: float | None = Field(default=None, gt=0)
    tensorboard: bool = False

    @field_validator("graphs", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return ("off", "on")[value] if isinstance(value, bool) else value  # YAML reads both words as truth values


class RunConfig(Config):
    """One training run: with the data set's fingerprint it determines the result on CPU."""

    name: str = "custom"
    task: Literal["retrieval", "ranking", "both"] = Field(
        default="retrieval", description="the next item of the catalogue, what comes of given candidates, or both"
    )
    model: RetrieverConfig = RetrieverConfig()
    batches: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    ranking: RankingConfig = RankingConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _loss_fits_task(self) -> RunConfig:
        if self.loss.actions and self.task != "retrieval":
            raise ValueError(
                f"loss.actions chooses the next events that retrieval trains on, and task is {self.task}: "
                "set task retrieval, or leave loss.actions out"
            )
        return self

    def candidates_at_most(self) -> int:
        """Return the most candidates behind a history."""
        return 0 if self.task == "retrieval" else self.ranking.request_size + self.ranking.sampled


def preset_names(folder: Path = PRESETS) -> list[str]:
    """Return the names of the presets in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def resolve_config(name_or_path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the preset or YAML file `name_or_path` with `key=value` overrides applied.

    Example:
        >>> resolve_config("hstu-small", ["model.layers=4"]).model.layers
        4

    Raises:
        InputError: no such preset or file, an unknown key, a value out of range.
    """
    return resolve(RunConfig, PRESETS, name_or_path, overrides)


def resolve(kind: type[C], folder: Path, name_or_path: str, overrides: Sequence[str], what: str = "") -> C:
    """Return what `resolve_config` does, of another `kind` of configuration with its presets in `folder`.

    `what` says in errors what the presets are for.

    Raises:
        InputError: as `resolve_config`.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path, known = folder / f"{name_or_path}.yaml", preset_names(folder)
        if name_or_path not in known:
            raise InputError(
                f"no preset {name_or_path!r}{what}{suggestion(name_or_path, known)}; presets{what}: "
                f"{', '.join(known)}; or give a .yaml file"
            )
    values: dict[str, Any] = {"name": path.stem, **load_yaml(path)}
    return parse(kind, override(values, overrides), name_or_path if not overrides else f"{name_or_path} with --set")
