"""Scores of prediction files against truth files, without a model."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kmaskformer.data.images import read_label_map, read_panoptic_ids
from kmaskformer.evaluation.average_precision import coco_average_precision
from kmaskformer.evaluation.files import PanopticFile, info_of_categories, read_instances, read_panoptic_file
from kmaskformer.evaluation.joint_runs import joint_runs
from kmaskformer.evaluation.label_folders import LabelPair, pair_cityscapes, pair_label_maps
from kmaskformer.evaluation.label_ids import LabelIds
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.own_average_precision import own_average_precision
from kmaskformer.evaluation.panoptic_quality import PanopticQuality, check_all_listed
from kmaskformer.json_files import read_json
from kmaskformer.structures import VOID, DatasetInfo

Metric = TypeVar("Metric", MeanIoU, PanopticQuality)


def score_panoptic_files(
    truth: str | Path,
    predictions: str | Path,
    truth_folder: str | Path | None = None,
    predictions_folder: str | Path | None = None,
) -> dict[str, float]:
    """Panoptic quality of a COCO panoptic JSON + PNG folder against another.

    Args:
        truth: JSON with `categories`; classes are numbered in the order of their ids.
        predictions: JSON with an annotation for each image of the truth; others are ignored.
        truth_folder: The truth's PNGs; by default the JSON's path without `.json`.
        predictions_folder: The predictions' PNGs, likewise.

    Returns:
        `panoptic/PQ` and all other scores of `PanopticQuality.result`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is wrong, or predictions lack an image.
    """
    true, predicted = read_panoptic_file(truth, truth_folder), read_panoptic_file(predictions, predictions_folder)
    info = _panoptic_info(true)

    def add(metric: PanopticQuality, image_id: Any) -> None:
        true_map, true_segments = _read_panoptic(true, image_id, info)
        predicted_map, predicted_segments = _read_panoptic(predicted, image_id, info)
        metric.update(predicted_map, predicted_segments, true_map, true_segments)

    metric = _score_all(lambda: PanopticQuality.from_info(info), add, _common_images(true, predicted))
    return _prefixed("panoptic", metric.result())


def score_semantic_folders(
    truth: str | Path,
    predictions: str | Path,
    num_classes: int,
    ignore_value: int = 255,
    class_names: Sequence[str] | None = None,
    void_to_class: int | None = None,
) -> dict[str, float]:
    """Semantic scores of a folder of label PNGs against another.

    Args:
        truth: Folder of one-channel PNGs with class ids `0 .. num_classes - 1` and `ignore_value`; subfolders count.
        predictions: Folder with a label map of the same relative name for each of the truth's; see `pair_label_maps`.
        num_classes: Number of classes.
        ignore_value: Value of unlabelled pixels in the truth.
        class_names: Names for the per-class scores.
        void_to_class: If given, predictions outside `0 .. num_classes - 1` count as this class, else as wrong.

    Returns:
        `semantic/mIoU` and all other scores of `MeanIoU.result`.

    Raises:
        FileNotFoundError: If a folder or a file is missing, or the truth holds no label map.
        ValueError: If a file is wrong.
    """
    pairs = pair_label_maps(Path(truth), Path(predictions))

    def new() -> MeanIoU:
        return MeanIoU(num_classes, ignore_value, class_names, void_to_class)

    return _score_label_maps(pairs, new, read_label_map, read_label_map)


def score_label_folders(
    truth: str | Path, predictions: str | Path, info: DatasetInfo, void_to_class: int | None = None
) -> dict[str, float]:
    """Semantic scores of a folder of label PNGs in a dataset's own ids against another, such as `predict` writes.

    Args:
        truth: Folder of one-channel PNGs with `info.dataset_ids` and values for unlabelled pixels; subfolders count.
            Of Cityscapes' files those named `*_labelIds.png` count.
        predictions: Folder with a label map of each of the truth's; see `pair_label_maps` and `pair_cityscapes`.
        info: The label space.
        void_to_class: If given, predictions that are no class count as this contiguous class, else as wrong.

    Returns:
        `semantic/mIoU` and all other scores of `MeanIoU.result`.

    Raises:
        FileNotFoundError: If a folder or a file is missing, or the truth holds no label map.
        ValueError: If a file is wrong.
    """
    truth, predictions, ids = Path(truth), Path(predictions), LabelIds(info)
    pairs = pair_cityscapes(truth, predictions) or pair_label_maps(truth, predictions)

    def new() -> MeanIoU:
        return MeanIoU(info.num_classes, ids.void, info.class_names, void_to_class)

    scores = _score_label_maps(pairs, new, ids.read_predicted, ids.read_true)
    if {0, 255} <= ids.unlabelled_seen:
        warnings.warn(
            f"{truth}: both 0 and 255 occur, and both are unlabelled in '{info.name}'. If 0 is a class here, the files "
            "hold class numbers, not the dataset's own ids: score them with --classes instead of a label space.",
            RuntimeWarning,
            stacklevel=2,
        )
    return scores


def _score_label_maps(
    pairs: list[LabelPair],
    new: Callable[[], MeanIoU],
    read_predicted: Callable[[Path], np.ndarray],
    read_true: Callable[[Path], np.ndarray],
) -> dict[str, float]:
    def add(metric: MeanIoU, pair: LabelPair) -> None:
        metric.update(read_predicted(pair.predicted), read_true(pair.true))

    metric = _score_all(new, add, {pair: f"{pair.predicted} against {pair.true}" for pair in pairs})
    _warn_of_void(metric)
    return _prefixed("semantic", metric.result())


def _warn_of_void(metric: MeanIoU) -> None:
    """Says where most of the predictions are no class: their values may be ids of another kind."""
    labelled, void = metric.confusion.sum(), metric.confusion[:, -1].sum()
    if void > labelled / 2:
        warnings.warn(
            f"{void / labelled:.0%} of the labelled pixels are predicted to be of no class. Do the predictions hold "
            "other ids than the truth?",
            RuntimeWarning,
            stacklevel=3,
        )


def score_semantic_from_panoptic(
    truth: str | Path,
    predictions: str | Path,
    truth_folder: str | Path | None = None,
    predictions_folder: str | Path | None = None,
    void_to_class: int | None = None,
) -> dict[str, float]:
    """Semantic scores of panoptic files: every pixel counts with its segment's class, crowd too.

    Args:
        truth: As in `score_panoptic_files`.
        predictions: As in `score_panoptic_files`.
        truth_folder: As in `score_panoptic_files`.
        predictions_folder: As in `score_panoptic_files`.
        void_to_class: If given, predicted void counts as this contiguous class, else as wrong.

    Returns:
        `semantic/mIoU` and all other scores of `MeanIoU.result`.
    """
    true, predicted = read_panoptic_file(truth, truth_folder), read_panoptic_file(predictions, predictions_folder)
    info = _panoptic_info(true)

    def add(metric: MeanIoU, image_id: Any) -> None:
        true_classes = _classes(*_read_panoptic(true, image_id, info))
        metric.update(_predicted_classes(*_read_panoptic(predicted, image_id, info)), true_classes)

    def new() -> MeanIoU:
        return MeanIoU(info.num_classes, VOID, info.class_names, void_to_class)

    return _prefixed("semantic", _score_all(new, add, _common_images(true, predicted)).result())


def score_instance_files(truth: str | Path, predictions: str | Path) -> dict[str, float]:
    """COCO's mask and box figures of a result JSON against an instance JSON.

    pycocotools computes them where it is installed, else this package's own code, which gives the same numbers.

    Returns:
        `instance/AP`, `instance/AP50`, ... for masks, as in `average_precision.SCORE_NAMES`, `instance/AP/<name>` per
        class; and the same for boxes under `box/`, where all of the truth's annotations have one.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is wrong.
    """
    content, results = read_json(truth), read_instances(predictions)
    try:
        return _score_instances(content, results)
    except ValueError as error:
        raise ValueError(f"{predictions} against {truth}: {error}") from error


def _score_instances(content: Any, results: list[dict[str, Any]]) -> dict[str, float]:
    official = importlib.util.find_spec("pycocotools") is not None
    score = coco_average_precision if official else own_average_precision
    scores = _prefixed("instance", score(content, results, "segm"))
    if content["annotations"] and all(one.get("bbox") for one in content["annotations"]):
        scores |= _prefixed("box", score(content, results, "bbox"))
    return scores


def _score_all(new: Callable[[], Metric], add: Callable[[Metric, Any], None], names: dict[Any, str]) -> Metric:
    """Shares the images among threads, each with its own metric, and merges; errors get the image's name."""
    keys = list(names)
    workers = max(1, min(os.cpu_count() or 1, len(keys)))

    def work(offset: int) -> Metric:
        metric = new()
        for key in keys[offset::workers]:
            try:
                add(metric, key)
            except ValueError as error:
                raise ValueError(f"{names[key]}: {error}") from error
        return metric

    with ThreadPoolExecutor(workers) as pool:
        return reduce(lambda first, second: first.merge(second), pool.map(work, range(workers)))


def _read_panoptic(file: PanopticFile, image_id: Any, info: DatasetInfo) -> tuple[np.ndarray, list[dict[str, Any]]]:
    annotation = file.annotations[image_id]
    contiguous = info.contiguous_ids
    unknown = {s["category_id"] for s in annotation["segments_info"]} - set(contiguous)
    if unknown:
        raise ValueError(
            f"{file.path}: segments must have a category of the truth's `categories`. Received: {sorted(unknown)[:5]}"
        )
    segments = [dict(s, category_id=contiguous[s["category_id"]]) for s in annotation["segments_info"]]
    return read_panoptic_ids(file.png(image_id)), segments


def _classes(segment_ids: np.ndarray, segments: list[dict[str, Any]]) -> np.ndarray:
    """`(height, width)` contiguous class ids of a segment map, -1 where a pixel is in no listed segment."""
    ids, _, lengths = joint_runs(segment_ids, segment_ids)
    class_of = {segment["id"]: segment["category_id"] for segment in segments}
    classes = np.array([class_of.get(i, VOID) for i in ids.tolist()], np.int32)
    return np.repeat(classes, lengths).reshape(segment_ids.shape)


def _predicted_classes(segment_ids: np.ndarray, segments: list[dict[str, Any]]) -> np.ndarray:
    """`_classes`, and an error where a segment is not listed: it would count as void."""
    classes = _classes(segment_ids, segments)
    check_all_listed(segment_ids[classes == VOID])
    return classes


def _panoptic_info(true: PanopticFile) -> DatasetInfo:
    if not true.categories:
        raise ValueError(f"{true.path}: the truth must list `categories` (id, name, isthing). Received: none")
    return info_of_categories(true.categories)


def _common_images(true: PanopticFile, predicted: PanopticFile) -> dict[Any, str]:
    """What to call each image of the truth, by its id."""
    if not true.annotations:
        raise ValueError(f"{true.path}: the truth must have at least one annotation. Received: none")
    missing = [image_id for image_id in true.annotations if image_id not in predicted.annotations]
    if missing:
        example = next((f"; those predicted are such as {image_id!r}" for image_id in predicted.annotations), "")
        raise ValueError(
            f"{predicted.path}: every image of the truth needs a prediction (it may have no segments). "
            f"Missing: {len(missing)} of {len(true.annotations)}, first image_id {missing[0]!r}{example}"
        )
    return {
        image_id: f"image {image_id}: {predicted.png(image_id)} against {true.png(image_id)}"
        for image_id in true.annotations
    }


def _prefixed(name: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in scores.items()}
