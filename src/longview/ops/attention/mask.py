"""Which keys each row of a sequence sees: one immutable object for every backend.

A sequence is `[context (c) | history (h) | targets (t)]`, oldest first. A row of the mask is a query, a column
a key; both count over the whole sequence, while "history index" counts from the first history event.

Source: semi-local attention of ULTRA-HSTU, arXiv 2602.16986, Eq. 6-7, which can be read two ways (`global_mode`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor

from longview.errors import InputError, suggestion

PRESETS = ("causal", "ultra", "ultra_prefix", "meta", "torcheasyrec")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSpec:
    """The visibility rule of a layer. Immutable and hashable; lengths are arguments, never part of it.

    Attributes:
        local_window: K1, the latest history keys a history row sees, itself included; 0 = all (full causal).
        global_size: K2, see `global_mode`; 0 = none.
        global_mode: `prefix`: every history row also sees the first K2 history keys (causally), and the mask is
            append-exact. `recent`: the K2 newest history rows see all earlier history.
        context_rows: `causal`, or `bidirectional`: context rows see all context and all history.
        context_visible: true: every later row sees all context. False: a row limited to a window sees the
            context only within it, where the whole context counts as one position before the first event, as in
            Meta's code (a row that sees all history sees all context too).
        target_scope: `full`: a target sees context, all history and itself; `semi_local`: context, the first K2
            history keys (prefix mode), the last K1 (all of them if K1 = 0), and itself.
        target_group: targets of one group of this size see the earlier ones of their group; 1 = none.
        target_in_window: parity with Meta: the window of a `semi_local` target counts the target itself.
        target_self: parity with TorchEasyRec when false: targets do not see themselves.
        prefix_counts_context: parity with TorchEasyRec: K2 counts context and history columns together.

    Example:
        >>> print(MaskSpec.ultra(local_window=3, global_size=2).text(0, 6, 0))
        h0 x.....
        h1 xx....
        h2 xxx...
        h3 .xxx..
        h4 xxxxx.
        h5 xxxxxx

    Raises:
        InputError: a field of a wrong type or value; the message names the field.
    """

    local_window: int = 0
    global_size: int = 0
    global_mode: Literal["prefix", "recent"] = "prefix"
    context_rows: Literal["causal", "bidirectional"] = "causal"
    context_visible: bool = True
    target_scope: Literal["full", "semi_local"] = "full"
    target_group: int = 1
    target_in_window: bool = False
    target_self: bool = True
    prefix_counts_context: bool = False

    def __post_init__(self) -> None:
        kinds = get_type_hints(MaskSpec)
        least = {"local_window": 0, "global_size": 0, "target_group": 1}
        for field in fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if field.name in least:
                if type(value) is not int or value < least[field.name]:
                    raise InputError(f"mask: {field.name} is {value!r}; expected an integer >= {least[field.name]}")
            elif kind is bool:
                if type(value) is not bool:
                    raise InputError(f"mask: {field.name} is {value!r}; expected true or false")
            elif value not in get_args(kind):
                allowed = get_args(kind)
                hint = suggestion(str(value), allowed)
                raise InputError(f"mask: {field.name} is {value!r}{hint}; expected one of {', '.join(allowed)}")

    @classmethod
    def causal(cls) -> MaskSpec:
        """Every row sees everything before it: plain HSTU."""
        return cls()

    @classmethod
    def ultra(cls, local_window: int = 256, global_size: int = 128) -> MaskSpec:
        """Semi-local attention whose newest rows see everything (`recent`). The sizes are about the paper's."""
        return cls(local_window=local_window, global_size=global_size, global_mode="recent")

    @classmethod
    def ultra_prefix(cls, local_window: int = 256, global_size: int = 128) -> MaskSpec:
        """Semi-local attention whose rows all see the oldest events (`prefix`): append-exact."""
        return cls(local_window=local_window, global_size=global_size, global_mode="prefix")

    @classmethod
    def meta(cls, local_window: int = 0, global_size: int = 0) -> MaskSpec:
        """The mask of Meta's generative-recommenders: `local_window` is its `max_attn_len` (a row keeps that many
        keys *before* itself), `global_size` its `min_full_attn_seq_len`."""
        return cls(
            local_window=local_window + 1 if local_window else 0,
            global_size=global_size,
            global_mode="recent",
            context_rows="bidirectional",
            context_visible=False,
            target_scope="full" if global_size or not local_window else "semi_local",
            target_in_window=True,
        )

    @classmethod
    def torcheasyrec(cls, local_window: int = 256, global_size: int = 128) -> MaskSpec:
        """The mask of TorchEasyRec's semi-local attention (`build_sla_func_tensor`), which needs a window."""
        if local_window == 0:
            raise InputError("mask: TorchEasyRec's rows see nothing at local_window 0; give local_window >= 1")
        return cls(local_window=local_window, global_size=global_size, target_self=False, prefix_counts_context=True)

    @classmethod
    def preset(cls, name: str, **sizes: int) -> MaskSpec:
        """Return the preset `name` (one of `PRESETS`) with `local_window` and `global_size` where it takes them.

        Raises:
            InputError: an unknown name, or a size the preset does not take.
        """
        if name not in PRESETS:
            raise InputError(f"unknown mask {name!r}{suggestion(name, PRESETS)}; known: {', '.join(PRESETS)}")
        takes = () if name == "causal" else ("local_window", "global_size")
        for size in sizes:
            if size not in takes:
                raise InputError(f"mask {name!r} takes {' and '.join(takes) or 'no sizes'}, not {size!r}")
        return getattr(cls, name)(**sizes)  # type: ignore[no-any-return]

    @property
    def append_exact(self) -> bool:
        """Whether new events never change what earlier rows see, so that a state can be kept and appended to.

        Prefix masks are; `recent` is not (yesterday's newest rows lose their full view), nor are bidirectional
        context rows (they see every new event).
        """
        recent = self.global_mode == "recent" and self.global_size > 0 and self.local_window > 0
        return not recent and self.context_rows == "causal"

    def prefix(self, c: int) -> int:
        """Return the history keys every row sees, given `c` context tokens; 0 outside `prefix` mode."""
        if self.global_mode != "prefix":
            return 0
        return max(self.global_size - c, 0) if self.prefix_counts_context else self.global_size

    @property
    def recent(self) -> int:
        """The newest history rows that see all earlier history; 0 outside `recent` mode."""
        return self.global_size if self.global_mode == "recent" else 0

    @property
    def target_reach(self) -> int | None:
        """The last history keys a target sees; None = all of them."""
        if self.target_scope == "full" or self.local_window == 0:
            return None
        return self.local_window - 1 if self.target_in_window else self.local_window

    def dense(self, c: int, h: int, t: int) -> Tensor:
        """Return the mask of one sequence, (c+h+t, c+h+t) bool, row = query: the oracle of every backend."""
        _check_lengths(c, h, t)
        index = torch.arange(c + h + t)
        return self.visible(index[:, None], index[None, :], c, h, t)

    def visible(self, row: Tensor, column: Tensor, c: int, h: int, t: int) -> Tensor:
        """Return whether `row` sees `column` (integer tensors that broadcast, both counted over the sequence)."""
        x, y = row - c, column - c  # history indices
        context_row, history_row, target_row = row < c, (row >= c) & (row < c + h), row >= c + h
        context_key, history_key, target_key = column < c, (column >= c) & (column < c + h), column >= c + h
        in_prefix = y < self.prefix(c)
        sees_all = (x >= h - self.recent) | (self.local_window == 0)
        reach = self.target_reach

        visible = context_row & ((column < c + h) if self.context_rows == "bidirectional" else (column <= row))
        visible |= history_row & context_key & (sees_all | self.context_visible | (x + 1 < self.local_window))
        visible |= history_row & history_key & (y <= x) & (sees_all | in_prefix | (x - y < self.local_window))
        if reach is None:
            visible |= target_row & (column < c + h)
        else:
            visible |= target_row & context_key & (self.context_visible or h < reach)
            visible |= target_row & history_key & ((y >= h - reach) | in_prefix)
        group, other = (x - h) // self.target_group, (y - h) // self.target_group
        earlier = (column <= row) if self.target_self else (column < row)
        return visible | (target_row & target_key & (group == other) & earlier)

    def pairs(self, c: int, h: int, t: int) -> int:
        """Return the number of ones of `dense(c, h, t)` in closed form (for counting operations)."""
        _check_lengths(c, h, t)
        context = c * (c + h) if self.context_rows == "bidirectional" else _triangle(c)
        return context + self._history_pairs(c, h) + t * self._target_pairs(c, h) + self._group_pairs(t)

    def text(self, c: int, h: int, t: int) -> str:
        """Return the mask as text, `x` where a row sees a column; `|` parts context, history and targets."""
        dense = self.dense(c, h, t).tolist()
        names = [*_names("c", c), *_names("h", h), *_names("t", t)]
        width = max(map(len, names), default=0)
        lines = []
        for name, row in zip(names, dense, strict=True):
            marks = "".join("x" if seen else "." for seen in row)
            regions = [marks[:c], marks[c : c + h], marks[c + h :]]
            lines.append(f"{name:<{width}} " + "|".join(part for part in regions if part))
        return "\n".join(lines)

    def _history_pairs(self, c: int, h: int) -> int:
        window = self.local_window
        if window == 0:
            return _triangle(h) + c * h
        beyond = max(h - window, 0)  # rows with history outside their window
        recent = min(self.recent, h)
        pairs = _triangle(h) - _triangle(beyond)
        sinks = min(self.prefix(c), beyond)
        pairs += sinks * beyond - _triangle(sinks - 1)  # key y is outside the window of `beyond - y` rows
        pairs += _triangle(beyond) - _triangle(beyond - recent)
        if self.context_visible:
            return pairs + c * h
        near = min(window - 1, h)
        return pairs + c * (near + max(h - max(h - recent, near), 0))

    def _target_pairs(self, c: int, h: int) -> int:
        reach = self.target_reach
        if reach is None:
            return c + h
        near = min(reach, h)
        return near + min(self.prefix(c), h - near) + (c if self.context_visible or h < reach else 0)

    def _group_pairs(self, t: int) -> int:
        whole, rest = divmod(t, self.target_group)
        return whole * _triangle(self.target_group) + _triangle(rest) - (0 if self.target_self else t)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2 if n > 0 else 0


def _names(region: str, count: int) -> Iterator[str]:
    return (f"{region}{i}" for i in range(count))


def _check_lengths(c: int, h: int, t: int) -> None:
    if min(c, h, t) < 0:
        raise InputError(f"mask: negative length in context={c}, history={h}, targets={t}; lengths count tokens")
