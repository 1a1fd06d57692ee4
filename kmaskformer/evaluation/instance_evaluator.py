"""Average precision of a model's instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kmaskformer.evaluation.evaluator import ImageOutputs, MetricEvaluator, Truth
from kmaskformer.evaluation.instance_precision import AveragePrecision, Instances, iou_of_overlaps
from kmaskformer.inference.general import general_instances
from kmaskformer.inference.instance import instance_inference
from kmaskformer.structures import DatasetInfo


class InstanceEvaluator(MetricEvaluator):
    """COCO's mask AP and AR of the thing classes; see `AveragePrecision.result` for the scores.

    True instances are the segments of thing classes, and their size is the number of their pixels. They overlap where
    the dataset says so (COCO instances). (The official files give the area of the outline: by-size figures can differ a
    little from theirs.)

    Args:
        inference: `default` takes the most probable pairs of query and class, masks may overlap; `general` gives each
            pixel to one pair.
        max_instances: Number of candidates of default inference.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    name = "instance"
    metric_class = AveragePrecision

    def __init__(self, inference: str = "default", max_instances: int = 100) -> None:
        super().__init__(inference)
        if max_instances < 1:
            raise ValueError(f"`max_instances` must be a positive integer. Received: max_instances={max_instances}")
        self.max_instances = max_instances

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""
        if not info.thing_ids:
            raise ValueError(
                f"Instances need thing classes, and dataset {info.name!r} has none: its `thing_ids` must name the "
                "countable classes."
            )
        super().bind(info)

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """The tables of `instance_inference`, without a batch axis."""
        logits = (outputs["class_logits"], outputs.restored_mask_logits)
        if self.inference == "general":
            result = general_instances(*logits, self.info.thing_ids)
        else:
            result = instance_inference(*logits, self.info.thing_ids, self.max_instances, score_threshold=0.0)
        return {key: result[key][0] for key in ("masks", "category_ids", "scores", "boxes", "areas", "valid")}

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        rows = np.flatnonzero(predictions["valid"])
        found = {key: np.asarray(values)[rows] for key, values in predictions.items() if key != "masks"}
        regions, membership = truth.overlaps or (truth.segment_map, np.eye(len(truth.labels), dtype=bool))
        true_areas = membership @ np.bincount(regions.reshape(-1) + 1, minlength=membership.shape[1] + 1)[1:]
        things = truth.valid & np.isin(truth.labels, self.info.thing_ids) & (true_areas > 0)
        common = _common_pixels(predictions["masks"], rows, found["boxes"], regions, membership.shape[1])
        common = common @ membership.T
        crowd = truth.is_crowd[things]
        self.metric.update(
            Instances(found["category_ids"], found["areas"], found["scores"]),
            Instances(truth.labels[things], true_areas[things], None, crowd),
            iou_of_overlaps(common[:, things], found["areas"], true_areas[things], crowd),
        )


def _common_pixels(
    masks: np.ndarray, rows: np.ndarray, boxes: np.ndarray, regions: np.ndarray, num_regions: int
) -> np.ndarray:
    """`(rows, regions)` pixels that a mask shares with a region of the truth; only the mask's box is looked at."""
    common = np.zeros((len(rows), num_regions), np.int64)
    for index, (row, (left, top, right, bottom)) in enumerate(zip(rows, boxes, strict=True)):
        inside = regions[top:bottom, left:right][masks[row, top:bottom, left:right]]
        common[index] = np.bincount(inside + 1, minlength=num_regions + 1)[1:]
    return common
