"""COCO's figures of result files by this package's own rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kmaskformer.data.run_lengths import decode_mask
from kmaskformer.evaluation.files import info_of_categories
from kmaskformer.evaluation.instance_precision import MAX_DETECTIONS, AveragePrecision, Instances, iou_of_overlaps
from kmaskformer.evaluation.instance_records import (
    box_of,
    checked_results,
    checked_truth,
    image_sizes,
    with_run_lengths,
)


def has_run_lengths(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every record's mask is given as run lengths."""
    return all(isinstance(record.get("segmentation"), Mapping) for record in records)


def own_average_precision(
    content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str = "segm"
) -> dict[str, float]:
    """The scores of `coco_average_precision` without pycocotools.

    Args:
        content: Content of a COCO instance JSON.
        results: Entries of a COCO result JSON.
        kind: `segm` compares masks, `bbox` boxes.

    Raises:
        ValueError: As `checked_truth` and `checked_results`.
    """
    content = checked_truth(content, kind)
    results = checked_results(content, results, kind)
    info = info_of_categories(content["categories"])
    contiguous = info.contiguous_ids
    metric = AveragePrecision(info.num_classes, info.class_names)
    sizes = image_sizes(content)
    annotations = [with_run_lengths(annotation, sizes) for annotation in content["annotations"]]
    truths, detections = _by_image(annotations, contiguous), _by_image(results, contiguous)
    boxes_state_areas = bool(results) and bool(results[0].get("bbox"))
    for image_id in sorted({image["id"] for image in content["images"]}, key=lambda one: (str(type(one)), one)):
        found, true = _most_certain(detections[image_id]), truths[image_id]
        if not found and not true:
            continue
        compare = _masks if kind == "segm" else _boxes
        (first, first_areas), (second, second_areas) = compare(found), compare(true)
        crowd = np.array([bool(record.get("iscrowd", 0)) for record in true], bool)
        iou = _iou(first, first_areas, second, second_areas, crowd)
        metric.update(
            Instances(
                _classes(found, contiguous),
                _detection_areas(found, first_areas, kind, boxes_state_areas),
                np.array([record["score"] for record in found], np.float64),
            ),
            Instances(_classes(true, contiguous), _numbers(true, "area"), None, crowd),
            iou,
        )
    return metric.result()


def _by_image(records: Sequence[Mapping[str, Any]], contiguous: Mapping[Any, int]) -> dict[Any, list]:
    images = defaultdict(list)
    for record in records:
        if record["category_id"] in contiguous:
            images[record["image_id"]].append(record)
    return images


def _most_certain(records: list) -> list:
    """At most 100 of each class, those of the highest scores, in their own order."""
    by_class = defaultdict(list)
    for index, record in enumerate(records):
        by_class[record["category_id"]].append((-record["score"], index))
    kept = sorted(index for ranked in by_class.values() for _, index in sorted(ranked)[: MAX_DETECTIONS[-1]])
    return [records[index] for index in kept]


def _masks(records: list) -> tuple[np.ndarray, np.ndarray]:
    """Masks, eight pixels a byte `(masks, bytes)` uint8, and their areas."""
    packed = [np.packbits(decode_mask(record["segmentation"]).reshape(-1, order="F")) for record in records]
    if len({bits.size for bits in packed}) > 1:
        raise ValueError(f"Masks of image {records[0]['image_id']!r} must have the size of the image; some differ")
    masks = np.array(packed, np.uint8) if packed else np.zeros((0, 0), np.uint8)
    return masks, np.bitwise_count(masks).sum(axis=1, dtype=np.int64)


def _boxes(records: list) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(boxes, 4)` left, top, width, height, and their areas."""
    boxes = [record.get("bbox") or box_of(decode_mask(record["segmentation"])) for record in records]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return boxes, boxes[:, 2] * boxes[:, 3]


def _iou(
    first: np.ndarray, first_areas: np.ndarray, second: np.ndarray, second_areas: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    common = np.zeros((len(first), len(second)))
    for column in range(len(second)):
        if first.dtype == np.uint8:
            if len(first):
                common[:, column] = np.bitwise_count(first & second[column]).sum(axis=1, dtype=np.int64)
            continue
        start = np.maximum(first[:, :2], second[column, :2])
        end = np.minimum(first[:, :2] + first[:, 2:], second[column, :2] + second[column, 2:])
        common[:, column] = np.prod(np.maximum(end - start, 0), axis=1)
    return iou_of_overlaps(common, first_areas, second_areas, crowd)


def _classes(records: list, contiguous: Mapping[Any, int]) -> np.ndarray:
    return np.array([contiguous[record["category_id"]] for record in records], np.int64)


def _numbers(records: list, key: str) -> np.ndarray:
    return np.array([record[key] for record in records], np.float64)


def _detection_areas(records: list, areas: np.ndarray, kind: str, boxes_state_areas: bool) -> np.ndarray:
    """The area that says how large a detection is: as in the official tool its box's, if the first result has a box."""
    if boxes_state_areas or kind == "segm":
        return _boxes(records)[1] if boxes_state_areas else areas
    return _masks(records)[1] if has_run_lengths(records) else areas
