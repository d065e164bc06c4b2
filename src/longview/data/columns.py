"""Which column is what: chosen by the caller, else by well-known names, else by content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from longview.data.readers import Source
from longview.errors import InputError, suggestion

if TYPE_CHECKING:
    import polars as pl

# In order of preference; compared in lower case with every other character dropped, so `User-ID` is `userid`.
USER = "userid user uid users visitorid customerid customer clientid memberid reviewerid accountid playerid readerid "
USER += "msno personid viewerid author sessionid session"
ITEM = "itemid item iid items movieid movie productid product parentasin asin sku articleid article trackid songid "
ITEM += "bookid isbn businessid newsid videoid contentid postid recipeid gameid gmapid artistid hotelid poi venueid"
TIME = "timestamp time ts datetime date eventtime createdat unixtime unixreviewtime unixtimestamp reviewtime "
TIME += "timestamps tdat viewedat ratedat orderdate sessiondate timems eventtimestamp visittime utctime"
ORDER = "position pos order rank sequence seq step eventindex index"
ACTION = "action actions event eventtype actiontype behavior behaviour behaviortype behaviourtype interactiontype"
FLAG = "click clicked isclick like liked islike follow isfollow share isshare comment iscomment longview cart "
FLAG += "addtocart buy bought purchase purchased isbuy skip isskip save saved iscart favorite favourite"
STRENGTH = "rating ratings score stars star overall preference watchtime watchtimems playtime playtimems dwell "
STRENGTH += "dwelltime playcount plays listens weight quantity watchratio playduration hours"
TITLE = (
    "title name movietitle itemname itemtitle productname producttitle headline trackname songname booktitle prodname"
)
CATEGORY = "category categories genre genres maincategory class productcategory topics topic"
PLAUSIBLE_TIME = 10**8  # seconds: 1973; a number below is no time unless the column is named like one


@dataclass(frozen=True)
class Columns:
    """The role of each column of a log. At most one of `time` and `order` is set; neither means order of the rows.

    `guessed` names the roles that nobody chose, `unused` the columns that are not read.
    """

    user: str
    item: str
    time: str | None = None
    order: str | None = None
    actions: tuple[str, ...] = ()
    strengths: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def key(self) -> str | None:
        """The column that orders events, or None."""
        return self.time or self.order

    @property
    def used(self) -> list[str]:
        """All columns to read, each once."""
        key = [] if self.key is None else [self.key]
        return list(dict.fromkeys([self.user, self.item, *key, *self.actions, *self.strengths]))

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (role, column, how it was chosen) for people."""
        how = {role: "guessed" if role in self.guessed else "chosen" for role in ("user", "item", "time", "order")}
        rows = [("user", self.user, how["user"]), ("item", self.item, how["item"])]
        if self.time is not None:
            rows.append(("time", self.time, how["time"]))
        elif self.order is not None:
            rows.append(("order", self.order, how["order"]))
        else:
            rows.append(("order", "as the rows appear", "no time or order column"))
        rows += [("action", name, "guessed" if "actions" in self.guessed else "chosen") for name in self.actions]
        rows += [("strength", name, "guessed" if "strengths" in self.guessed else "chosen") for name in self.strengths]
        if self.unused:
            rows.append(("not used", _list(self.unused), "--action or --strength keeps one"))
        return rows


@dataclass(frozen=True)
class Choice:
    """What the caller chose; None and empty mean: guess."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    order: str | None = None
    actions: tuple[str, ...] = ()
    strengths: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def choose_columns(source: Source, choice: Choice) -> Columns:
    """Return the role of each column of `source`.

    Raises:
        InputError: an unknown column (the nearest is suggested), one with two roles, or no guess for user or item.
    """
    path, names = source.path, source.names
    if choice.time is not None and choice.order is not None:
        raise InputError("time and order exclude each other: name the time column, or the one that orders events")
    chosen = Columns(
        user=_resolve(path, names, choice.user) or "",
        item=_resolve(path, names, choice.item) or "",
        time=_resolve(path, names, choice.time),
        order=_resolve(path, names, choice.order),
        actions=tuple(_resolve(path, names, name) or "" for name in choice.actions),
        strengths=tuple(_resolve(path, names, name) or "" for name in choice.strengths),
    )
    roles = [name for name in (chosen.user, chosen.item, chosen.key, *chosen.actions) if name]
    twice = next((name for name in roles if roles.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} is given two roles; a column has one")
    ignored = {_resolve(path, names, name) for name in choice.ignore}
    free = [name for name in names if name not in ignored and name not in {*roles, *chosen.strengths}]
    return _guess(source, chosen, free)


def require_columns(source: Source, columns: Columns, first: Path) -> None:
    """Refuse a further file of a log that lacks a column of the first."""
    for name in columns.used:
        if name not in source.names:
            raise InputError(
                f"{source.path}: no column {name!r}, which {first} has{suggestion(name, source.names)}; "
                f"columns: {_list(source.names)}. Files read together need the same columns"
            )


def find(names: Iterable[str], known: str) -> str | None:
    """Return the name that stands first in the list of `known` ones."""
    plain = {_plain(name): name for name in reversed(list(names))}
    return next((plain[word] for word in known.split() if word in plain), None)


def _guess(source: Source, chosen: Columns, free: list[str]) -> Columns:
    import polars as pl

    sample = pl.DataFrame(pl.from_arrow(source.sample()))
    guessed: list[str] = []

    def take(role: str, name: str | None) -> str | None:
        if name is not None:
            free.remove(name)
            guessed.append(role)
        return name

    user = chosen.user or take("user", find(free, USER))
    item = chosen.item or take("item", find(free, ITEM))
    time, order = chosen.time, chosen.order
    if time is None and order is None:
        time = take("time", find(free, TIME)) or take("time", _time_by_content(sample, free))
    if time is None and order is None:
        order = take("order", next((n for n in [find(free, ORDER)] if n and _is_number(sample[n])), None))
    strengths = chosen.strengths
    if not strengths:
        strengths = tuple(name for name in free if _plain(name) in STRENGTH.split() and _is_number(sample[name]))
        for name in strengths:
            free.remove(name)
        guessed += ["strengths"] if strengths else []
    actions = chosen.actions
    if not actions:
        actions = tuple(name for name in free if _is_action(name, sample[name]))
        for name in actions:
            free.remove(name)
        guessed += ["actions"] if actions else []
    # What is left over, in the order of the file, is user and item: the convention of every public log.
    left = [name for name in free if not _is_fraction(sample[name])]
    user = user or take("user", left.pop(0) if left and (item or len(left) > 1) else None)
    item = item or take("item", left.pop(0) if left else None)
    if not user or not item:
        missing = "user" if not user else "item"
        raise InputError(
            f"{source.path}: cannot tell which column is the {missing}; name it with --{missing}. "
            f"Columns: {_list(source.names)}"
        )
    found = replace(
        chosen,
        user=user,
        item=item,
        time=time,
        order=order,
        actions=actions,
        strengths=strengths,
        guessed=tuple(guessed),
    )
    return replace(found, unused=tuple(name for name in source.names if name not in found.used))


def resolve_column(path: Path, names: Sequence[str], wanted: str) -> str:
    """Return the column `wanted`, with or without its RecBole type.

    Raises:
        InputError: no such column; the nearest is suggested.
    """
    if wanted in names:
        return wanted
    bare = wanted.rpartition(":")[0]
    if bare in names:
        return bare
    raise InputError(f"{path}: no column {wanted!r}{suggestion(wanted, names)}; columns: {_list(names)}")


def _resolve(path: Path, names: Sequence[str], wanted: str | None) -> str | None:
    return None if wanted is None else resolve_column(path, names, wanted)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")


def _numbers(values: pl.Series) -> pl.Series:
    import polars as pl

    known = values.drop_nulls()
    if known.dtype == pl.String:
        return known.cast(pl.Float64, strict=False)
    return known.cast(pl.Float64) if known.dtype.is_numeric() else pl.Series([None], dtype=pl.Float64)


def _is_number(values: pl.Series) -> bool:
    numbers = _numbers(values)
    return len(numbers) > 0 and not numbers.has_nulls()


def _is_fraction(values: pl.Series) -> bool:
    return _is_number(values) and bool((_numbers(values) % 1 != 0).any())


def _is_action(name: str, values: pl.Series) -> bool:
    import polars as pl

    if _plain(name) in ACTION.split():
        return values.n_unique() <= 62 and not _is_fraction(values)
    if _plain(name) not in FLAG.split():
        return False
    return values.dtype == pl.Boolean or set(values.drop_nulls().cast(pl.String).str.to_lowercase()) <= FLAG_VALUES


FLAG_VALUES = frozenset({"0", "1", "0.0", "1.0", "true", "false"})


def _time_by_content(sample: pl.DataFrame, free: list[str]) -> str | None:
    import polars as pl

    from longview.data.timestamps import iso_datetimes

    for name in free:
        values = sample[name].drop_nulls()
        if not len(values):
            continue
        if values.dtype in (pl.Date, pl.Datetime):
            return name
        if values.dtype == pl.String and not _is_number(values) and not iso_datetimes(values).has_nulls():
            return name
    # Of numbers, the last column of plausible times, and only one beside two others for user and item.
    if len(free) < 3:
        return None
    plausible = [n for n in free if _is_number(sample[n]) and float(str(_numbers(sample[n]).min())) >= PLAUSIBLE_TIME]
    return plausible[-1] if plausible else None
