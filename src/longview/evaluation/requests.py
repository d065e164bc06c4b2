"""Evaluate a ranking model on the requests of one split."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from longview.data.dataset import PreparedData
from longview.data.requests import Candidates, Requests, request_batch, take
from longview.data.schema import Inputs
from longview.errors import InputError, LongviewError, suggestion
from longview.evaluation.impression_report import ImpressionReport, report_impressions
from longview.evaluation.impressions import Impressions, Predictions, RankingProtocol, split_impressions
from longview.evaluation.ranking import device_of, evaluation_mode
from longview.models.ranker import Ranker

TOKENS = 16_384  # a batch


def evaluate_requests(
    model: Ranker,
    data: PreparedData,
    which: str,
    protocol: RankingProtocol,
    *,
    inputs: Inputs | None = None,
    device: torch.device | str | None = None,
    resamples: int = 1000,
    name: str | None = None,
) -> ImpressionReport:
    """Predict what comes of every candidate of a split, and report NE, AUC, GAUC, calibration and errors.

    Args:
        model: a ranking model; it must be on `device`.
        data: the data set; its split says which events are candidates.
        which: `validation` to select and stop early, `test` once a run.
        protocol: the tasks the model was trained for, and the size of requests.
        inputs: strengths and context that the model reads, by default as its schema says.
        device: where batches go; by default where the model's parameters are.
        resamples: bootstrap resamples over users; 0 reports metrics only.
        name: what the report calls the model, by default its class.

    Raises:
        InputError: no such split, or an empty one.
        LongviewError: predictions that are not numbers.
    """
    if which not in ("validation", "test"):
        raise InputError(
            f"no split {which!r}{suggestion(str(which), ['validation', 'test'])}: choose validation or test"
        )
    begin = time.perf_counter()
    shown = split_impressions(data, "validation" if which == "validation" else "test", protocol)
    predictions = predict_impressions(model, data, shown, inputs=inputs, device=device)
    if not np.isfinite(predictions).all():
        raise LongviewError("the model's predictions are not numbers (NaN): training diverged; lower the learning rate")
    return report_impressions(
        shown,
        predictions,
        data,
        which,
        protocol,
        name=name or type(model).__name__,
        seconds=time.perf_counter() - begin,
        resamples=resamples,
    )


def predict_impressions(
    model: Ranker,
    data: PreparedData,
    shown: Impressions,
    *,
    inputs: Inputs | None = None,
    device: torch.device | str | None = None,
) -> Predictions:
    """Return the prediction of every candidate, (n, tasks) float64, in their order."""
    device = torch.device(device) if device is not None else device_of(model)
    inputs = Inputs.of(model.schema, data) if inputs is None else inputs
    parts = []
    with torch.no_grad(), evaluation_mode(model):
        for requests, candidates in _pieces(shown, model.max_length):
            batch = request_batch(data, requests, candidates, max_length=model.max_length, inputs=inputs)
            parts.append(model.predict(batch.to(device)))
        return torch.cat(parts).cpu().numpy()


def _pieces(shown: Impressions, max_length: int) -> Iterator[tuple[Requests, Candidates]]:
    """Yield runs of requests of about `TOKENS` tokens, with their candidates."""
    counts = np.bincount(shown.candidates.request, minlength=len(shown.requests))
    ends = np.concatenate([[0], np.cumsum(counts)])
    history = np.minimum(shown.requests.history_end - shown.requests.start, max_length)
    tokens = np.cumsum(history + counts)
    begin = 0
    while begin < len(counts):
        before = tokens[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(tokens, before + TOKENS, side="right")))
        rows = slice(ends[begin], ends[stop])
        part = Candidates(
            shown.candidates.request[rows] - begin, shown.candidates.items[rows], shown.candidates.labels[rows]
        )
        yield take(shown.requests, slice(begin, stop)), part
        begin = stop
