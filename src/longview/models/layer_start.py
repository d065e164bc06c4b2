"""Where the weights of an HSTU layer start: at random, or as a look-up among earlier events.

A look-up has two halves, each of no use without the other: attention has to find the event, and the output has to hand
on what was there. From random weights both have to be met by chance, among thousands of events that only add noise.
`mimetic` starts with both: queries and keys are one projection, so that a row finds events like itself; the output is
the transpose of the values' projection and the gate is open, so that what was found is handed on.

Source: Mimetic Initialization of Self-Attention Layers, Trockman and Kolter, arXiv 2305.09828; and that it helps models
recall: Trockman et al., arXiv 2410.11135. Gate and scale are ours, for pointwise SiLU attention.
"""

from __future__ import annotations

import math

import torch
from torch import nn

OWN_SCORE = 1.5  # of a row with itself; SiLU then tells it from the scores of strangers, which are around 0
OPEN = 1.0  # bias of the gate: SiLU of it is 0.73


@torch.no_grad()
def start_at_random(uvqk: nn.Linear, output: nn.Linear) -> None:
    """Draw both projections of a layer by Xavier's rule, without a bias."""
    for product in (uvqk, output):
        nn.init.xavier_uniform_(product.weight)
        nn.init.zeros_(product.bias)


@torch.no_grad()
def start_as_look_up(uvqk: nn.Linear, output: nn.Linear, sizes: list[int], d_qk: int, alpha: float) -> None:
    """Turn a layer that starts at random into one that looks up.

    Args:
        uvqk: the projection to gate, values, queries and keys, `sizes` rows of each.
        output: the product behind attention; gated rows are its last columns.
        sizes: as above.
        d_qk: of a head.
        alpha: what scores are multiplied by.
    """
    gate, values, queries, _ = torch.split(uvqk.weight, sizes)
    keys = uvqk.weight[-sizes[3] :]
    # Rows are normed, so that the mean square of their entries is 1, and so a row has this score with itself.
    own = alpha * d_qk * queries.square().mean() * queries.shape[1]
    queries.mul_(math.sqrt(OWN_SCORE / float(own)))
    keys.copy_(queries)
    uvqk.bias[: len(gate)] = OPEN
    output.weight[:, -len(values) :] = values.T
