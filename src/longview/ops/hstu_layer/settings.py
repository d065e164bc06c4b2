"""What a fused layer is made of: its tensors, its fixed settings, and the attention it is given."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Protocol

from torch import Tensor


class Attention(Protocol):
    """Attention over one batch, with its backward pass in the open so that gradients land where they are needed.

    q, k: (T, H, d_qk) and v: (T, H, d_v) are views with a row stride of the whole projection; none is contiguous.
    """

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """Return (T, H, d_v), dtype of v."""
        ...

    def backward(
        self, d_a_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, out: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Write the gradients of q, k and v into `out`: every element of it, strided like q, k and v."""
        ...

    def backward_before_silu(
        self,
        d_a_THD: Tensor,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        before: tuple[Tensor, Tensor, Tensor],
        out: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """Write the gradients of what SiLU made q, k and v of, `before`, into `out`, which is strided like it.

        Return partial sums of them over the tokens, float32 (., H * (d_v + 2 d_qk)): those of v, q and k.
        """
        ...


@dataclass(frozen=True)
class LayerParameters:
    """The tensors of a layer, in the layout of `nn.LayerNorm` and `nn.Linear`. N = 2·H·d_v + 2·H·d_qk."""

    norm_weight: Tensor  # (width,)
    norm_bias: Tensor  # (width,)
    uvqk_weight: Tensor  # (N, width), rows in the order U, V, Q, K
    uvqk_bias: Tensor  # (N,)
    attention_norm_weight: Tensor  # (H·d_v,), or (d_v,) where each head is normalised by itself
    attention_norm_bias: Tensor  # like attention_norm_weight
    output_weight: Tensor  # (width, H·d_v)
    output_bias: Tensor  # (width,)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of them, in the order of their declaration."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class LayerSettings:
    """What does not change from batch to batch.

    The three `recompute_` flags trade memory for time; results are the same bits. What is kept in any case: the
    layer's input, the attention's output and the statistics of both norms. Rows that a product has in 8 bits are made
    again by backward, whatever the flags say.
    """

    heads: int
    d_qk: int
    d_v: int
    activation: Literal["uvqk", "u"] = "uvqk"
    norm: Literal["row", "head"] = "row"
    dropout: float = 0.0
    epsilon: float = 1e-6
    recompute_normed: bool = True  # the normalised input: (T, width)
    recompute_uvqk: bool = True  # the projection after and before SiLU: 2 × (T, N)
    recompute_gated: bool = True  # the input of the output product: (T, H·d_v)
    fp8_projection: bool = False  # forward in E4M3; backward as without
    fp8_output: bool = False  # likewise

    @property
    def gate(self) -> int:
        """The columns of U, of V and of the attention's output."""
        return self.heads * self.d_v

    @property
    def sizes(self) -> list[int]:
        """The columns of U, V, Q and K."""
        return [self.gate, self.gate, self.heads * self.d_qk, self.heads * self.d_qk]

    @property
    def activated(self) -> int:
        """How many leading columns of the projection pass through SiLU."""
        return sum(self.sizes) if self.activation == "uvqk" else self.gate

    @property
    def groups(self) -> int:
        """How many parts of a row of the attention's output are normalised each by itself."""
        return self.heads if self.norm == "head" else 1
