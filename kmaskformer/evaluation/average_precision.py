"""Average precision of instance masks, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.evaluation.files import info_of_categories, read_instances
from kmaskformer.evaluation.instance_records import checked_results, checked_truth
from kmaskformer.evaluation.mean_iou import mean_or_nan
from kmaskformer.evaluation.own_average_precision import own_average_precision
from kmaskformer.extras import missing_extra
from kmaskformer.json_files import read_json

SCORE_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The official tool's twelve figures, in its order; s, m, l are small, medium and large objects."""


def coco_average_precision(
    truth: str | Path | Mapping[str, Any],
    predictions: str | Path | Sequence[Mapping[str, Any]],
    kind: str = "segm",
) -> dict[str, float]:
    """COCO's twelve figures, and AP per class.

    Args:
        truth: COCO instance JSON, or its content.
        predictions: COCO result JSON, or its list of results.
        kind: `segm` compares masks, `bbox` boxes.

    Returns:
        `AP`, `AP50`, ... as in `SCORE_NAMES`, and `AP/<name>`, in 0..1; NaN where there is nothing to find.

    Raises:
        ImportError: If pycocotools is not installed.
        ValueError: If `kind` is unknown, or as `checked_truth` and `checked_results`.
    """
    if kind not in ("segm", "bbox"):
        raise ValueError(f"`kind` must be segm or bbox. Received: kind={kind!r}")
    coco_class, evaluation_class = _pycocotools()
    content = read_json(truth) if isinstance(truth, str | Path) else truth
    results = read_instances(predictions) if isinstance(predictions, str | Path) else list(predictions)
    content = checked_truth(content, kind)
    results = checked_results(content, results, kind)
    if not results:
        return own_average_precision(content, results, kind)  # the official tool refuses an empty list
    # The official tool reports its progress on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco_class()
        reference.dataset = {**content, "images": _with_sizes(content, results)}
        reference.createIndex()
        evaluation = evaluation_class(reference, reference.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _scores(evaluation, content)


def _with_sizes(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The images, with the sizes that their masks state: the official tool wants them even where it needs none."""
    masks = {
        one["image_id"]: one["segmentation"]
        for one in (*content["annotations"], *results)
        if isinstance(one.get("segmentation"), Mapping)
    }
    sizes = {image_id: dict(zip(("height", "width"), mask["size"], strict=True)) for image_id, mask in masks.items()}
    return [{**sizes.get(image["id"], {}), **image} for image in content["images"]]


def _scores(evaluation: Any, content: Mapping[str, Any]) -> dict[str, float]:
    scores = {name: _defined(value) for name, value in zip(SCORE_NAMES, evaluation.stats, strict=True)}
    # Axes: IoU thresholds, recalls, classes (by ascending category id), areas (first: all), detections (last: 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, name in enumerate(info_of_categories(content["categories"]).class_names):
        values = precision[:, :, index]
        scores[f"AP/{name}"] = mean_or_nan(values[values > -1])
    return scores


def _defined(value: float) -> float:
    return float(value) if value > -1 else float(np.nan)


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("coco", "COCO's average precision", error) from error
    return COCO, COCOeval
