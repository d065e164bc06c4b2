"""Simulated logs: for the demo, for tests and for trying Longview without data. Nothing here is real.

Reading order: `config.py` (the knobs), `catalogue.py` (items and their births), `sessions.py` (when users come
and which taste they follow), `simulate.py` (which items they touch, and the tables), `write.py` (files).
`lifelong/` is another world, of histories of thousands of events; `oracle.py` tells how good a model can be on it.
"""

from __future__ import annotations

from longview.data.simulator.config import SimulationConfig
from longview.data.simulator.lifelong import LifelongConfig, write_lifelong
from longview.data.simulator.oracle import Oracle, oracle_metrics
from longview.data.simulator.simulate import Simulation, simulate
from longview.data.simulator.write import write_simulation

__all__ = [
    "LifelongConfig",
    "Oracle",
    "Simulation",
    "SimulationConfig",
    "oracle_metrics",
    "simulate",
    "write_lifelong",
    "write_simulation",
]
