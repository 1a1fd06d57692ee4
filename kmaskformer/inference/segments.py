"""Rows of a result's segment table (`structures.Segment`) from arrays of one image; NumPy, outside the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from kmaskformer.structures import VOID, DatasetInfo, Segment


def semantic_segments(class_map: np.ndarray, confidence: np.ndarray | None, info: DatasetInfo) -> list[Segment]:
    """One row per class that occurs; a row's id is its class id.

    Args:
        class_map: `(height, width)` int contiguous class ids; `structures.VOID` where there is none.
        confidence: `(height, width)`, 0..1, averaged over a class's pixels to its score; 1 if None.
        info: The label space.
    """
    present = np.unique(class_map[class_map != VOID])
    boxes = _boxes(class_map + 1)
    segments = []
    for category_id in present.tolist():
        region = class_map == category_id
        score = 1.0 if confidence is None else float(confidence[region].mean())
        segments.append(_row(category_id, category_id, info, score, int(region.sum()), boxes[category_id]))
    return segments


def panoptic_segments(segmentation: np.ndarray, table: Mapping[str, np.ndarray], info: DatasetInfo) -> list[Segment]:
    """The valid rows of a panoptic table, by id.

    Args:
        segmentation: `(height, width)` int32, 0 where void.
        table: `valid`, `segment_ids`, `category_ids`, `scores`, `areas` of one image, each `(queries,)`.
        info: The label space.
    """
    boxes = _boxes(segmentation)
    columns = [
        np.asarray(table[key])[table["valid"]].tolist() for key in ("segment_ids", "category_ids", "scores", "areas")
    ]
    return [
        _row(segment_id, category_id, info, score, area, boxes[segment_id - 1])
        for segment_id, category_id, score, area in zip(*columns, strict=True)
    ]


def instance_segments(
    masks: np.ndarray, table: Mapping[str, np.ndarray], info: DatasetInfo
) -> tuple[np.ndarray, list[Segment]]:
    """A map of instance ids from 1, in the given order, and the rows. Where instances overlap the better one shows.

    Args:
        masks: `(instances, height, width)` bool, valid ones only, by falling score where they overlap.
        table: `category_ids`, `scores`, `areas` and `boxes` of the same instances.
        info: The label space.

    Returns:
        `(height, width)` int32, 0 where there is no instance, and one row per mask. Areas and boxes are those of the
        masks, also where another instance covers them.
    """
    segmentation = np.zeros(masks.shape[1:], np.int32)
    for index in reversed(range(len(masks))):
        segmentation[masks[index]] = index + 1
    columns = [np.asarray(table[key]).tolist() for key in ("category_ids", "scores", "areas", "boxes")]
    rows = zip(*columns, strict=True)
    return segmentation, [
        _row(index + 1, category_id, info, score, area, tuple(box))
        for index, (category_id, score, area, box) in enumerate(rows)
    ]


def _boxes(segmentation: np.ndarray) -> list[tuple[int, int, int, int] | None]:
    """Box of each id from 1: left, top, right, bottom; None where an id does not occur."""
    found = ndimage.find_objects(segmentation)
    return [None if box is None else (box[1].start, box[0].start, box[1].stop, box[0].stop) for box in found]


def _row(
    segment_id: int, category_id: int, info: DatasetInfo, score: float, area: int, box: tuple[int, int, int, int]
) -> Segment:
    return Segment(
        id=segment_id,
        category_id=category_id,
        label=info.class_names[category_id],
        is_thing=category_id in info.thing_ids,
        score=float(score),
        area=int(area),
        box=box,
    )
