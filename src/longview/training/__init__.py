"""The loop, optimiser, checkpoints and run directory."""

from longview.training.config import RunConfig, preset_names, resolve_config
from longview.training.run import train
from longview.training.rundir import LoadedRun, load_model, save_model
from longview.training.running import InterruptedRunError

__all__ = [
    "InterruptedRunError",
    "LoadedRun",
    "RunConfig",
    "load_model",
    "preset_names",
    "resolve_config",
    "save_model",
    "train",
]
