"""How good an encoder is: retrieval among the classes held out for it, beside the pixels themselves."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from longview.data.images import ImageBatches, ImageSet, ImageView, InOrder
from longview.data.images.framing import Framing
from longview.errors import InputError, suggestion
from longview.evaluation.gallery import draw_gallery, gallery_rows
from longview.evaluation.retrieval import (
    Embedded,
    RerankConfig,
    RetrievalConfig,
    RetrievalRanks,
    evaluate_retrieval,
    rank_retrieval,
    retrieval_report,
)
from longview.evaluation.retrieval.evaluate import protocol
from longview.models.encoders import ImageEncoder
from longview.training.images.config import ImageRunConfig
from longview.training.images.views import EVALUATED_AT_ONCE, Views, embed_view

MOST_PIXELS = 1 << 28  # values, 1 GiB: more is not held for a baseline


def validation_metrics(
    encoder: ImageEncoder, view: ImageView, framing: Framing, config: ImageRunConfig, device: torch.device
) -> dict[str, float]:
    """Return the metrics of a leave-one-out retrieval in `view`, without intervals."""
    embedded = embed_view(encoder, view, framing, config.data, device)
    settings = RetrievalConfig(recall_at=config.evaluation.recall_at, resamples=0)
    found: dict[str, float] = evaluate_retrieval(embedded, None, settings)["metrics"]
    return found


def reports_of(
    encoder: ImageEncoder,
    images: ImageSet,
    framing: Framing,
    config: ImageRunConfig,
    which: str,
    *,
    device: torch.device,
    rerank: RerankConfig | None = None,
    picture: Path | None = None,
) -> list[dict[str, Any]]:
    """Return the report of `encoder` on validation or test: leave-one-out, or queries against their gallery.

    With `rerank` there is a second one, of the same vectors ordered by k-reciprocal re-ranking. Where matplotlib is
    installed, some queries and their neighbours are drawn to the PNG file `picture`.

    Raises:
        InputError: no such split, one without images, or re-ranking of queries that are also in a gallery of their own.
    """
    queries, gallery = views_of(images, config, which)
    ours = embed_view(encoder, queries, framing, config.data, device)
    theirs = None if gallery is None else embed_view(encoder, gallery, framing, config.data, device)
    report, ranks = _report(config.name, images, config, which, ours, theirs)
    if picture is not None and config.evaluation.gallery_queries and find_spec("matplotlib") is not None:
        _draw(picture, images, framing, ranks, ours, theirs or ours, report, config.evaluation.gallery_queries)
    if rerank is None:
        return [report]
    return [report, _report(f"{config.name}, re-ranked", images, config, which, ours, theirs, rerank=rerank)[0]]


def views_of(images: ImageSet, config: ImageRunConfig, which: str) -> tuple[ImageView, ImageView | None]:
    """Return queries and gallery of a split; None is leave-one-out.

    Raises:
        InputError: no such split, or one without images.
    """
    if which not in ("validation", "test"):
        known = ["validation", "test"]
        raise InputError(f"no split {which!r}{suggestion(which, known)}: choose validation or test")
    if which == "test":
        queries = images.query
        gallery = None if images.leave_one_out else images.gallery
    else:
        queries, gallery = Views.of(images, config.data).validation, None
    if not len(queries) or (gallery is not None and not len(gallery)):
        raise InputError(f"{images.path}: no {which} images to evaluate on")
    return queries, gallery


def pixel_baseline(
    images: ImageSet, framing: Framing, config: ImageRunConfig
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the report of the pixels as they are, on test, or why there is none."""
    queries, gallery = views_of(images, config, "test")
    values = (len(queries) + (0 if gallery is None else len(gallery))) * int(np.prod(framing.shape))
    if values > MOST_PIXELS:
        return [], {"pixels": f"{values * 4 / 2**30:.1f} GiB of them"}
    theirs = None if gallery is None else _pixels(gallery, framing, config)
    ours = _pixels(queries, framing, config)
    report, _ = _report("pixels", images, config, "test", ours, theirs, similarity="euclidean")
    return [report], {}


def _pixels(view: ImageView, framing: Framing, config: ImageRunConfig) -> Embedded:
    order = InOrder(len(view), EVALUATED_AT_ONCE)
    data = config.data
    with ImageBatches(view, order, framing, workers=data.workers, bad_images=data.bad_images) as batches:
        found = [(batch.images.flatten(1), batch.labels, batch.ids) for batch in batches.epoch(0)]
    vectors, labels, ids = (torch.cat(column) for column in zip(*found, strict=True))
    return Embedded(vectors, np.asarray(view.images.label_names)[labels.numpy()].tolist(), ids.numpy())


def _draw(
    file: Path,
    images: ImageSet,
    framing: Framing,
    ranks: RetrievalRanks,
    queries: Embedded,
    gallery: Embedded,
    report: dict[str, Any],
    number: int,
) -> None:
    """Draw some queries, right and wrong ones, with their neighbours."""

    def image(of: Embedded, place: int) -> Any:
        assert of.ids is not None
        view = ImageView(images, np.asarray([of.ids[place]], np.int64))
        with ImageBatches(view, InOrder(1, 1), framing) as batches:
            return next(iter(batches.epoch(0))).images[0].permute(1, 2, 0).numpy()

    rows = gallery_rows(ranks, partial(image, queries), partial(image, gallery), number=number)
    title = f"{report['name']} on {report['data']}, {report['split']}: MAP@R {report['metrics']['map@r']:.4f}"
    draw_gallery(file, rows, title)


def _report(
    name: str,
    images: ImageSet,
    config: ImageRunConfig,
    which: str,
    queries: Embedded,
    gallery: Embedded | None,
    similarity: Literal["cosine", "euclidean"] = "cosine",
    rerank: RerankConfig | None = None,
) -> tuple[dict[str, Any], RetrievalRanks]:
    evaluation = config.evaluation
    settings = RetrievalConfig(
        recall_at=evaluation.recall_at, resamples=evaluation.resamples, similarity=similarity, rerank=rerank
    )
    ranks = rank_retrieval(queries, gallery, settings)
    words = protocol(queries, gallery, settings)
    report = retrieval_report(ranks, settings.recall_at, words, resamples=settings.resamples)
    return {"name": name, "data": images.meta.name, "split": which, "fingerprint": images.fingerprint, **report}, ranks
