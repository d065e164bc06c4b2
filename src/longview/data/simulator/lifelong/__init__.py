"""Simulated lifelong histories, with the best possible prediction of every event known. Nothing here is real.

Reading order: `config.py` (the rules), `reference.py` (the probability of the next item, the obvious way),
`catalogue.py` (items), `draws.py` (random numbers of a user), `schedule.py` (when, and what kind of event), `habits.py`
(what returns after long gaps), `openings.py` (popularity, births and deaths, moves), `actions.py`, `generate.py`
(histories as arrays), `past.py` and `predict.py` (the oracle, for many events at once), `write.py` (a prepared data
set), `tensors.py` (batches without files).
"""

from __future__ import annotations

from longview.data.simulator.lifelong.actions import ACTIONS
from longview.data.simulator.lifelong.catalogue import Catalogue, make_catalogue
from longview.data.simulator.lifelong.config import Band, LifelongConfig, component_names
from longview.data.simulator.lifelong.generate import Histories, blocks, histories, unfold
from longview.data.simulator.lifelong.past import Past
from longview.data.simulator.lifelong.predict import Prediction, predict
from longview.data.simulator.lifelong.reference import next_item
from longview.data.simulator.lifelong.tensors import Requests, history_batch, request_batch
from longview.data.simulator.lifelong.write import write_lifelong

__all__ = [
    "ACTIONS",
    "Band",
    "Catalogue",
    "Histories",
    "LifelongConfig",
    "Past",
    "Prediction",
    "Requests",
    "blocks",
    "component_names",
    "histories",
    "history_batch",
    "make_catalogue",
    "next_item",
    "predict",
    "request_batch",
    "unfold",
    "write_lifelong",
]
