# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The mask inside a kernel: which tiles a block touches, which of them need no mask, and the mask of one tile.

A sequence has c context tokens, history up to token e, targets up to token n. A block of rows (or of keys) never
crosses from one region to another (`work.py` cuts it so), and then what it sees is at most four ranges of the other
side. A range is `(start, stop)` of tokens that some of the block see and `(full, full_stop)` that all of it see; it
becomes tiles that need no mask and, on both sides of them, tiles that do.

`M` is the `MaskSpec` itself, a compile-time constant.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def visible(row, col, c, e, n, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return whether `row` sees `col`: `MaskSpec.visible`, for tokens of one sequence."""
    WINDOW: tl.constexpr = M.local_window
    RECENT: tl.constexpr = M.recent
    PREFIX: tl.constexpr = M.global_size if M.global_mode == "prefix" else 0
    seen = col <= row
    if WINDOW > 0:
        near = row - col < WINDOW
        if PREFIX > 0:
            near |= col < c + _prefix(c, M)
        if RECENT > 0:
            near |= row >= e - RECENT
        if CONTEXT:
            if M.context_visible:
                near |= col < c
            else:
                in_context = (row - c + 1 < WINDOW) | (row >= e - RECENT)
                near = (near & (col >= c)) | (in_context & (col < c))
        seen &= near
    if CONTEXT:
        of_context = (col < e) if M.context_rows == "bidirectional" else (col <= row)
        seen = tl.where(row < c, of_context, seen)
    if TARGETS:
        REACH: tl.constexpr = M.target_reach
        GROUP: tl.constexpr = M.target_group
        of_target = col < e
        if REACH is not None:
            in_reach = (col >= e - REACH) | (col < c + _prefix(c, M))
            if CONTEXT:
                in_context = (col < c) if M.context_visible else (col < c) & (e - c < REACH)
                of_target &= ((col >= c) & in_reach) | in_context
            else:
                of_target &= in_reach
        same = (row - e) // GROUP == (col - e) // GROUP
        earlier = (col <= row) if M.target_self else (col < row)
        of_target |= (col >= e) & same & earlier
        seen = tl.where(row >= e, of_target, seen)
    return seen & (col < n)


@triton.jit
def _prefix(c, M: tl.constexpr):
    """Return how many history keys every row sees."""
    PREFIX: tl.constexpr = M.global_size if M.global_mode == "prefix" else 0
    if M.prefix_counts_context:
        found = tl.maximum(PREFIX - c, 0)
    else:
        found = c * 0 + PREFIX
    return found


@triton.jit
def newest_start(c, e, M: tl.constexpr):
    """Return the first history row that sees all before it although others have a window."""
    WINDOW: tl.constexpr = M.local_window
    RECENT: tl.constexpr = M.recent
    start = e
    if WINDOW > 0:
        if RECENT > 0:
            start = tl.where(e - c >= WINDOW, tl.maximum(e - RECENT, c), e)
    return start


@triton.jit
def row_stop(first, c, e, n, size, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return where the block of at most `size` rows that begins at `first` ends: with its region at the latest."""
    end = n
    if TARGETS:
        end = tl.where(first < e, e, end)
    if M.recent > 0:
        newest = newest_start(c, e, M)
        end = tl.where(first < newest, newest, end)
    if CONTEXT:
        end = tl.where(first < c, c, end)
    return tl.minimum(first + size, end)


@triton.jit
def columns_of_rows(first, stop, c, e, n, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return what rows `first:stop` of one region see: global keys, the window, and targets of their groups.

    Three ranges of four numbers each (start, stop, full, full_stop); the targets' has nothing without a mask.
    """
    WINDOW: tl.constexpr = M.local_window
    h, none = e - c, n * 0
    prefix = _prefix(c, M)
    # What most rows do: see everything before them.
    a, a_stop, a_full, a_full_stop = none, none, none, none
    b, b_stop, b_full, b_full_stop = none, stop, none, first + 1
    g, g_stop = none, none
    if WINDOW > 0:
        x, last = first - c, stop - 1 - c
        near, near_last = none, none  # where the context begins to be seen
        if CONTEXT:
            if not M.context_visible:
                near, near_last = tl.where(x + 1 < WINDOW, 0, c), tl.where(last + 1 < WINDOW, 0, c)
        a, a_stop = near, c + tl.minimum(prefix, last + 1)
        a_full, a_full_stop = near_last, c + tl.minimum(prefix, x + 1)
        b, b_full = c + tl.maximum(x + 1 - WINDOW, 0), c + tl.maximum(last + 1 - WINDOW, 0)
        limited = first < newest_start(c, e, M)
        if CONTEXT:
            limited &= first >= c
        if CONTEXT or TARGETS or M.recent > 0:
            a, a_stop = tl.where(limited, a, 0), tl.where(limited, a_stop, 0)
            a_full, a_full_stop = tl.where(limited, a_full, 0), tl.where(limited, a_full_stop, 0)
            b, b_full = tl.where(limited, b, 0), tl.where(limited, b_full, 0)
    if CONTEXT:
        if M.context_rows == "bidirectional":
            b_stop = tl.where(first < c, e, b_stop)
            b_full_stop = tl.where(first < c, e, b_full_stop)
    if TARGETS:  # they see all or part of the history, and of themselves what is in their group
        REACH: tl.constexpr = M.target_reach
        target = first >= e
        b_stop, b_full_stop = tl.where(target, e, b_stop), tl.where(target, e, b_full_stop)
        if REACH is not None:
            start = none
            if not M.context_visible:
                start = tl.where(h < REACH, 0, c)
            shared = c + tl.minimum(prefix, h)
            a, a_stop = tl.where(target, start, a), tl.where(target, shared, a_stop)
            a_full, a_full_stop = tl.where(target, start, a_full), tl.where(target, shared, a_full_stop)
            reach = c + tl.maximum(h - REACH, 0)
            b, b_full = tl.where(target, reach, b), tl.where(target, reach, b_full)
        g = tl.where(target, first - (first - e) % M.target_group, 0)
        g_stop = tl.where(target, stop, 0)
    return a, a_stop, a_full, a_full_stop, b, b_stop, b_full, b_full_stop, g, g_stop


@triton.jit
def key_stop(first, c, e, n, size, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return where the block of at most `size` keys that begins at `first` ends: with its region at the latest."""
    end = n
    if TARGETS:
        end = tl.where(first < e, e, end)
    shared = tl.minimum(c + _prefix(c, M), e)
    end = tl.where(first < shared, shared, end)
    if CONTEXT:
        end = tl.where(first < c, c, end)
    return tl.minimum(first + size, end)


@triton.jit
def rows_of_keys(first, stop, c, e, n, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return the rows that see keys `first:stop` of one region: context, history by distance, newest, targets.

    Four ranges of four numbers each (start, stop, full, full_stop).
    """
    WINDOW: tl.constexpr = M.local_window
    h, none = e - c, n * 0
    prefix = _prefix(c, M)
    x, x_stop, x_full, x_full_stop = none, none, none, none
    if CONTEXT:
        of_context = first < c
        if M.context_rows == "bidirectional":
            x_stop = tl.where(first < e, c, 0)
        else:
            x, x_full = tl.where(of_context, first, 0), tl.where(of_context, stop - 1, 0)
            x_stop = tl.where(of_context, c, 0)
        x_full_stop = x_stop
    # History rows, as far as a key is seen from.
    y, y_full, y_stop, y_full_stop = first, stop - 1, e, e
    if CONTEXT:
        y, y_full = tl.maximum(y, c), tl.maximum(y_full, c)
    if WINDOW > 0:
        shared = first < c + prefix  # a key of the prefix or the context
        y_stop = tl.where(shared, e, tl.minimum(stop - 1 + WINDOW, e))
        y_full_stop = tl.where(shared, e, tl.minimum(first + WINDOW, e))
        if CONTEXT:
            if M.context_visible:
                y_stop, y_full_stop = tl.where(of_context, e, y_stop), tl.where(of_context, e, y_full_stop)
            else:
                y_stop = tl.where(of_context, c + tl.minimum(WINDOW - 1, h), y_stop)
                y_full_stop = tl.where(of_context, y_stop, y_full_stop)
    if TARGETS:
        of_targets = first >= e
        y_stop, y_full_stop = tl.where(of_targets, y, y_stop), tl.where(of_targets, y_full, y_full_stop)
    # The newest history rows, which see all before them.
    r, r_stop, r_full, r_full_stop = none, none, none, none
    if WINDOW > 0:
        if M.recent > 0:
            r = tl.maximum(tl.maximum(newest_start(c, e, M), y_stop), y)
            r_stop, r_full = e, tl.maximum(r, stop - 1)
            if TARGETS:
                r_stop = tl.where(of_targets, r, r_stop)
            r_full_stop = r_stop
    t, t_stop, t_full, t_full_stop = none, none, none, none
    if TARGETS:
        REACH: tl.constexpr = M.target_reach
        GROUP: tl.constexpr = M.target_group
        t, t_stop, t_full, t_full_stop = e, n, e, n
        if REACH is not None:
            some, every = (stop - c > h - REACH) | (first < c + prefix), (first - c >= h - REACH) | (first < c + prefix)
            if CONTEXT:
                if M.context_visible:
                    some, every = some | of_context, every | of_context
                else:
                    some, every = tl.where(of_context, h < REACH, some), tl.where(of_context, h < REACH, every)
            t_stop, t_full_stop = tl.where(some, n, e), tl.where(every, n, e)
        group_stop = e + ((stop - 1 - e) // GROUP + 1) * GROUP
        t = tl.where(of_targets, first, t)
        t_stop = tl.where(of_targets, tl.minimum(group_stop, n), t_stop)
        t_full_stop = tl.where(of_targets, e, t_full_stop)
    return (
        x, x_stop, x_full, x_full_stop,
        y, y_stop, y_full, y_full_stop,
        r, r_stop, r_full, r_full_stop,
        t, t_stop, t_full, t_full_stop,
    )  # fmt: skip


@triton.jit
def tiles_of(start, stop, full, full_stop, after, SIZE: tl.constexpr):
    """Return the tiles of a range: first, beyond the last, and those of them without a mask.

    Tiles before `after` belong to an earlier range. The tiles `[first, full)` and `[full_stop, last)` need a mask.
    """
    first = tl.maximum(start // SIZE, after)
    last = tl.where(stop > start, (stop + SIZE - 1) // SIZE, first)
    last = tl.maximum(last, first)
    whole = tl.maximum((full + SIZE - 1) // SIZE, first)
    whole_stop = tl.minimum(full_stop // SIZE, last)
    none = whole_stop <= whole
    whole = tl.where(none, first, whole)
    whole_stop = tl.where(none, first, whole_stop)
    return first, whole, whole_stop, last


@triton.jit
def pick(i, first, count, then):
    """Return tile `i` of `count` tiles from `first` on, or where they are used up, what `then` says."""
    return tl.where(i < count, first + i, then)
