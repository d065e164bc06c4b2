"""Longview: from what people did to what to show them next.

    import longview as lv

    data = lv.prepare("events.parquet", out="data/")
    model = lv.fit(data, out="runs/first")
    model.recommend(users=["42"], k=10)

Importing costs nothing; what is heavy loads at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longview.api import Model, PreparedData, fit, load, open_data, prepare, simulate
    from longview.errors import InputError, LongviewError

    __version__: str

__all__ = ["InputError", "LongviewError", "Model", "PreparedData", "fit", "load", "open_data", "prepare", "simulate"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("longview")
    if name in ("InputError", "LongviewError"):
        from longview import errors

        return getattr(errors, name)
    if name in __all__:
        from longview import api

        return getattr(api, name)
    raise AttributeError(f"module 'longview' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
