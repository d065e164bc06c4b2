"""The CPU path (being written: stands in for it with the reference)."""

from __future__ import annotations

from longview.ops.attention.reference import reference_attention as banded_attention

__all__ = ["banded_attention"]
