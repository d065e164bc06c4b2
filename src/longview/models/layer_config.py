"""What fixes an HSTU layer but its sizes: what a row of its attention sees, and what its parts are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from longview.config import Config
from longview.models.kernel_blocks import KernelBlocks
from longview.models.products import Precision
from longview.ops.attention import MaskSpec


class AttentionConfig(Config):
    """Which keys a history event sees (`MaskSpec`), and the relative bias added before SiLU."""

    local_window: int = Field(default=0, ge=0, description="newest keys a row sees, itself included; 0 = all")
    global_size: int = Field(default=0, ge=0, description="prefix keys every row sees, or newest rows that see all")
    global_mode: Literal["prefix", "recent"] = "prefix"
    target_scope: Literal["full", "semi_local"] = Field(
        default="full", description="a candidate sees all history, or the prefix and the window (constant-size state)"
    )
    position_bias: bool = Field(default=False, description="learned bias by distance")
    time_bias: bool = Field(default=False, description="learned bias by log-bucketed time difference")
    num_time_buckets: int = Field(default=64, ge=2)
    blocks: KernelBlocks = KernelBlocks()

    @model_validator(mode="after")
    def _a_global_part_needs_a_window(self) -> AttentionConfig:
        if self.global_size and not self.local_window:
            raise ValueError(
                f"global_size {self.global_size} without a local_window changes nothing, since every row sees all "
                "keys: set local_window, or leave global_size out"
            )
        return self

    def mask(self) -> MaskSpec:
        return MaskSpec(
            local_window=self.local_window,
            global_size=self.global_size,
            global_mode=self.global_mode,
            target_scope=self.target_scope,
        )


class LayerConfig(Config):
    """One HSTU layer; None stands for the derived value named in the description."""

    qk_dim: int | None = Field(default=None, ge=1, description="per head; default width / heads")
    v_dim: int | None = Field(default=None, ge=1, description="per head; default width / heads")
    activation: Literal["uvqk", "u"] = Field(default="uvqk", description="SiLU on U, V, Q and K, or on U alone")
    output: Literal["gated", "concat"] = Field(default="gated", description="U·Norm(A), or [U, A, U·Norm(A)]")
    norm: Literal["row", "head"] = Field(default="row", description="normalise A over all heads or per head")
    alpha: Literal["sqrt", "linear"] = Field(default="sqrt", description="scores times 1/√d_qk or 1/d_qk")
    scale_length: float | None = Field(default=None, gt=0, description="SiLU scores / this; default max_length")
    start: Literal["random", "mimetic"] = Field(
        default="random",
        description="weights before training: at random, or as a look-up of earlier events like the newest",
    )
    recompute: Literal["all", "most", "cheap", "none"] = Field(
        default="cheap",
        description="on a GPU, what backward computes again: all, all but the projection (cheap), this in every fourth "
        "layer and all in the others (most), or nothing",
    )
    precision: Precision = Field(
        default="run",
        description="of the layer's products: run = loop.precision; fp8 = E4M3 forward, emulated on a CPU; auto = fp8 "
        "where it was measured to be faster",
    )

    def at(self, place: int) -> LayerConfig:
        """Return the configuration of the layer at `place`, 0 for the first of a stack."""
        if self.recompute != "most":
            return self
        return self.model_copy(update={"recompute": "cheap" if place % 4 == 3 else "all"})
