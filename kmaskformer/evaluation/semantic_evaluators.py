"""More scores of semantic maps: borders, each class as one segment, and the Cityscapes benchmark's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kmaskformer.evaluation.boundary_iou import BoundaryIoU
from kmaskformer.evaluation.cityscapes_iou import CityscapesIoU
from kmaskformer.evaluation.evaluator import SemanticEvaluator, Truth
from kmaskformer.evaluation.panoptic_quality import PanopticQuality, SegmentTable
from kmaskformer.structures import VOID


class SemanticBoundaryEvaluator(SemanticEvaluator):
    """Boundary IoU of semantic maps; arguments as `SemanticEvaluator`, scores as `BoundaryIoU.result`."""

    name = "semantic_boundary"
    metric_class = BoundaryIoU

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        self.metric.update(predictions["class_map"], truth.semantic_map())


class PanopticStuffEvaluator(SemanticEvaluator):
    """PQ of semantic maps in which all pixels of a class are one segment: the paper's PQ^St.

    `panoptic_stuff/PQ` is the mean over all classes, `panoptic_stuff/PQ_stuff` over the stuff classes of the dataset;
    the other scores are those of `PanopticQuality.result`. Unlabelled pixels are void.
    """

    name = "panoptic_stuff"
    metric_class = PanopticQuality

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        maps = [np.asarray(one) + 1 for one in (predictions["class_map"], truth.semantic_map())]
        tables = [_one_segment_a_class(one, self.info.num_classes) for one in maps]
        self.metric.update(maps[0], tables[0], maps[1], tables[1])


class CityscapesEvaluator(SemanticEvaluator):
    """IoU and iIoU by class and category; arguments as `SemanticEvaluator`, scores as `CityscapesIoU.result`.

    The truth must tell instances apart, as instance maps do: in label maps all cars of an image are one segment.
    """

    name = "cityscapes"
    metric_class = CityscapesIoU

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        labels = np.where(truth.valid, truth.labels, VOID)
        self.metric.update(predictions["class_map"], truth.segment_map, labels, truth.is_crowd)


def _one_segment_a_class(class_map: np.ndarray, num_classes: int) -> SegmentTable:
    """The table of a map of class ids + 1."""
    present = np.flatnonzero(np.bincount(class_map.reshape(-1), minlength=num_classes + 1)[1:])
    return SegmentTable.from_columns(present + 1, present)
