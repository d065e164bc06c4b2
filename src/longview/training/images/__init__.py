"""Training an image encoder by metric learning, with a memory of earlier batches.

Read `config.py` for what a run is, `trainer.py` for a step, `run.py` for the way from a data set to a run directory.
"""

from longview.training.images.config import ImageRunConfig, image_preset_names, resolve_image_config
from longview.training.images.encoder_files import load_encoder, save_encoder
from longview.training.images.result import ImageTrainingResult
from longview.training.images.run import train_images
from longview.training.images.rundir import LoadedImageRun, is_image_run, load_image_run

__all__ = [
    "ImageRunConfig",
    "ImageTrainingResult",
    "LoadedImageRun",
    "image_preset_names",
    "is_image_run",
    "load_encoder",
    "load_image_run",
    "resolve_image_config",
    "save_encoder",
    "train_images",
]
