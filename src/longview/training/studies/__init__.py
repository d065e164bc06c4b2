"""Studies: a grid of configurations on one data set, cell by cell, that can be stopped and go on at any time.

Reading order: `config.py` (what a study is, and its cells), `cell.py` (train and measure one), `records.py` (what is
kept of each), `run.py` (all of them, within so many minutes, over several processes).
`longview.evaluation.scaling` and `.ablation` say what came out.
"""

from __future__ import annotations

from longview.training.studies.config import Cell, StudyConfig, load_study
from longview.training.studies.records import Records
from longview.training.studies.run import Progress, run_cells, summary

__all__ = ["Cell", "Progress", "Records", "StudyConfig", "load_study", "run_cells", "summary"]
