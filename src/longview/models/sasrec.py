"""SASRec, for comparison in the same frame: a causal transformer with softmax attention.

Source: Self-Attentive Sequential Recommendation, arXiv 1808.09781; layer norm before each block.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from longview.models.layout import Hidden, Layout
from longview.ops.jagged import from_padded, last_rows, to_padded


class SASRecLayer(nn.Module):
    """Softmax self-attention and a two-layer feed-forward block, each with a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = nn.LayerNorm(width, eps=1e-8)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width, eps=1e-8)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (T, width)."""
        x_TD = x_TD + F.dropout(self._attend(self.norm_attention(x_TD), layout), self.dropout, self.training)
        return x_TD + self.feed(self.norm_feed(x_TD))  # type: ignore[no-any-return]

    def _attend(self, x_TD: Tensor, layout: Layout) -> Tensor:
        total, width = x_TD.shape
        padded = to_padded(self.qkv(x_TD), layout.offsets, layout.max_length)
        # Padding is behind the history, so the causal mask hides it.
        q, k, v = padded.view(*padded.shape[:2], 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.project(from_padded(out.transpose(1, 2).flatten(2), layout.offsets, total))  # type: ignore[no-any-return]


class SASRecStack(nn.Module):
    """Layers one after another, and a final layer norm."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SASRecLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (T, width)."""
        for layer in self.layers:
            x_TD = layer(x_TD, layout)
        return self.norm(x_TD)  # type: ignore[no-any-return]

    def hidden(self, x_TD: Tensor, layout: Layout) -> Hidden:
        """Return `forward` as every stack gives it: all tokens are kept."""
        return Hidden(self(x_TD, layout), layout)

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width), the newest row of each sequence."""
        return last_rows(self(x_TD, layout), layout.offsets)
