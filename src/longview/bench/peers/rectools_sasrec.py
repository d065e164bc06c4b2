"""Times RecTools' SASRec. Runs in an interpreter that has RecTools, and imports nothing of Longview.

Usage: `python rectools_sasrec.py LOG.csv OUT.json EPOCHS SETTINGS_JSON`; the log has columns user, item, order.
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path


def main(log: Path, out: Path, epochs: int, settings: dict) -> None:
    """Fit for `epochs`, recommend top-10 to everyone, write the seconds of both to `out`."""
    warnings.filterwarnings("ignore")
    import pandas as pd
    import torch
    from pytorch_lightning import Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"], workers=True)
    frame = pd.read_csv(log)
    frame.columns = [Columns.User, Columns.Item, Columns.Datetime]
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    frame[Columns.Weight] = 1.0
    model = SASRecModel(
        n_factors=settings["width"],
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        session_max_len=settings["max_length"],
        loss="sampled_softmax",
        n_negatives=settings["num_negatives"],
        batch_size=settings["batch_size"],
        dropout_rate=0.2,
        lr=1e-3,
        get_trainer_func=lambda: Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
        ),
        recommend_torch_device="cpu",
    )
    dataset = Dataset.construct(frame)
    begin = time.perf_counter()
    model.fit(dataset)
    fitted = time.perf_counter()
    model.recommend(users=frame[Columns.User].unique(), dataset=dataset, k=10, filter_viewed=True)
    done = time.perf_counter()
    report = {
        "model": "RecTools SASRec",
        "seconds_per_epoch": (fitted - begin) / epochs,
        "seconds_to_recommend": done - fitted,
        "versions": {name: version(name) for name in ("rectools", "torch", "pytorch-lightning")},
    }
    out.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
