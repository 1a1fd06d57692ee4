"""A sample's ground truth in the form of a result, for pictures and files."""

from __future__ import annotations

import numpy as np

from kmaskformer.data.overlaps import settle_overlaps
from kmaskformer.structures import VOID, DatasetInfo, Sample, Segment


def true_result(sample: Sample, info: DatasetInfo, task: str) -> tuple[np.ndarray, list[Segment]]:
    """What a perfect model would answer.

    Of segments that overlap, the smallest is in front.

    Args:
        sample: A sample as a reader delivers it.
        info: Its label space.
        task: `"semantic"`, `"panoptic"` or `"instance"` (things only).

    Returns:
        The segmentation `(height, width)` int32 - contiguous class ids and -1 for void in the semantic task, segment
        ids from 1 and 0 for void otherwise - and its segment table.
    """
    sample = settle_overlaps(sample)
    segment_map, labels = sample["segment_map"], np.asarray(sample["labels"])
    if task == "semantic":
        lookup = np.append(labels, VOID).astype(np.int32)
        segmentation = lookup[segment_map]
        ids, category_ids = np.unique(labels), np.unique(labels)
    else:
        keep = np.isin(labels, info.thing_ids) if task == "instance" else np.ones(len(labels), bool)
        new_ids = np.where(keep, np.cumsum(keep), 0)
        segmentation = np.append(new_ids, 0).astype(np.int32)[segment_map]
        ids, category_ids = new_ids[keep], labels[keep]
    rows = [_row(segmentation, int(i), int(c), info) for i, c in zip(ids, category_ids, strict=True)]
    return segmentation, [row for row in rows if row["area"]]


def _row(segmentation: np.ndarray, segment_id: int, category_id: int, info: DatasetInfo) -> Segment:
    rows, columns = np.nonzero(segmentation == segment_id)
    box = (0, 0, 0, 0)
    if len(rows):
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return Segment(
        id=segment_id,
        category_id=category_id,
        label=info.class_names[category_id],
        is_thing=category_id in info.thing_ids,
        score=1.0,
        area=len(rows),
        box=box,
    )
