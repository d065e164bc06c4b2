"""The setting of an embedding memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from longview.config import Config
from longview.metric_learning.distributed import Mode
from longview.metric_learning.kalman import AdaptiveMomentMatching, Drift

if TYPE_CHECKING:
    from longview.metric_learning.memory import EmbeddingMemory

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MemoryConfig(Config):
    """Size, drift policy and rules of an `EmbeddingMemory`."""

    capacity: int = Field(ge=1, description="rows; where sharded, of all ranks together")
    width: int = Field(ge=1, description="dimension of an embedding")
    drift: Drift = Field(default=AdaptiveMomentMatching(), description="how rows follow the encoder")
    space: Literal["after-l2", "before-l2"] = Field(
        default="after-l2", description="whether a loss that normalises stores embeddings after or before that"
    )
    storage: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    moments: Literal["float64", "float32"] = Field(default="float32", description="dtype of moments and filter")
    order: Literal["normalise-first", "enqueue-first"] = Field(
        default="normalise-first", description="whether the loss of a batch sees the memory without or with that batch"
    )
    renormalise: bool | None = Field(
        default=None, description="L2-normalise rows when read; by default where rows are corrected or stored before L2"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps that only teach the filter: no row in, none out")
    age_limit: int | None = Field(default=None, ge=1, description="hide rows that are more steps old than this")
    floor: float = Field(default=1e-6, gt=0, description="least standard deviation of a dimension")
    distributed: Mode = Field(default="local", description="what the ranks of a job hold")
    check_every: int = Field(default=1000, ge=0, description="steps between checks that replicas agree; 0 = never")

    def build(self) -> EmbeddingMemory:
        """Return an empty memory."""
        from longview.metric_learning.memory import EmbeddingMemory

        return EmbeddingMemory(self)

    @property
    def normalises(self) -> bool:
        """Whether rows are L2-normalised when they are read."""
        if self.renormalise is not None:
            return self.renormalise
        return self.drift.corrects or self.space == "before-l2"
