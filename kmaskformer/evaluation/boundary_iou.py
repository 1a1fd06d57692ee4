"""IoU of the classes' borders, which large regions do not hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from kmaskformer.evaluation.joint_runs import check_maps
from kmaskformer.evaluation.mean_iou import MeanIoU, checked_class_names
from kmaskformer.evaluation.state import check_mergeable
from kmaskformer.structures import VOID, DatasetInfo


class BoundaryIoU:
    """Boundary IoU of every class over any number of images, in constant memory.

    A pixel of a class's region belongs to its boundary if within d pixels, in rows or columns or diagonally, there is a
    pixel outside the region or the edge of the image; d is `dilation_ratio` times the image's diagonal, rounded,
    at least 1. As for the mean IoU, intersections and unions of true and predicted boundaries are summed over all
    images before they are divided. Pixels without a true class are outside every region, true or predicted, so that a
    perfect prediction scores 1 whatever it says there.

    Args:
        num_classes: Number of classes K.
        ignore_value: Value of unlabelled pixels in truth maps; must not be a class id.
        class_names: Names for the per-class entries of `result`, by default `class 0`, `class 1`, ...
        dilation_ratio: Width of the boundary as a part of the image's diagonal.

    Raises:
        ValueError: If an argument is out of range.

    References:
        - [Cheng et al., Boundary IoU](https://arxiv.org/abs/2103.16562)
    """

    def __init__(
        self,
        num_classes: int,
        ignore_value: int = 255,
        class_names: Sequence[str] | None = None,
        dilation_ratio: float = 0.02,
    ) -> None:
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"`dilation_ratio` must lie between 0 and 1. Received: dilation_ratio={dilation_ratio}")
        self.class_names = checked_class_names(class_names, num_classes)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.dilation_ratio = dilation_ratio
        # Pixels inside a region, away from its boundary, are one more class, whose score is not shown. In here classes
        # are numbered: any name for it could be one of theirs.
        self._counts = MeanIoU(num_classes + 1, VOID)
        MeanIoU(num_classes, ignore_value)  # checks the arguments

    @classmethod
    def from_info(cls, info: DatasetInfo) -> BoundaryIoU:
        """A metric for a dataset, with the ignore value -1."""
        return cls(info.num_classes, VOID, info.class_names)

    def reset(self) -> None:
        """Forgets all images."""
        self._counts.reset()

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds one image.

        Args:
            prediction: `(height, width)` contiguous class ids; anything else is void.
            truth: Same size; contiguous class ids or `ignore_value`.

        Raises:
            ValueError: If sizes differ, a map does not hold integers, or the truth holds another value.
        """
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        check_maps(truth, prediction)
        prediction, truth = prediction.astype(np.int64), truth.astype(np.int64)
        unlabelled = truth == self.ignore_value
        void = (prediction < 0) | (prediction >= self.num_classes) | unlabelled
        # Void is beyond the inside class, or it would count as that.
        prediction = np.where(void, self.num_classes + 1, prediction)
        self._check_truth(truth[~unlabelled])
        width = boundary_width(truth.shape, self.dilation_ratio)
        true = np.where(boundary(truth, width), truth, self.num_classes)
        predicted = np.where(boundary(prediction, width) | void, prediction, self.num_classes)
        self._counts.update(predicted, np.where(unlabelled, VOID, true))

    def merge(self, other: BoundaryIoU) -> BoundaryIoU:
        """Adds the images that another instance has seen; returns self."""
        check_mergeable(self, other)
        self._counts.merge(other._counts)
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that has been counted, as arrays; `load_state` goes on from there."""
        return self._counts.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        self._counts.load_state(state)

    def result(self) -> dict[str, float]:
        """The scores of all images so far, in 0..1, NaN where undefined.

        Returns:
            `mIoU`, mean over the classes with a boundary in truth or prediction, `mIoU_truth_classes`, over those with
            one in the truth, and `IoU/<name>` per class.
        """
        counts = self._counts.confusion[:-1]
        true_pixels = counts.sum(axis=1)
        present = true_pixels + self._counts.confusion[:, :-2].sum(axis=0) > 0
        scores = self._counts.result()
        values = np.array([scores[f"IoU/{name}"] for name in self._counts.class_names[:-1]])
        means = {"mIoU": present, "mIoU_truth_classes": true_pixels > 0}
        result = {key: float(values[rows].mean()) if rows.any() else float("nan") for key, rows in means.items()}
        return {**result, **{f"IoU/{name}": float(value) for name, value in zip(self.class_names, values, strict=True)}}

    def _check_truth(self, true: np.ndarray) -> None:
        if true.size and not 0 <= true.min() <= true.max() < self.num_classes:
            raise ValueError(
                f"Truth must hold class ids 0..{self.num_classes - 1} or `ignore_value` {self.ignore_value}. "
                f"Received: {true.min()}..{true.max()}; check the number of classes and the ignore value."
            )


def boundary_width(size: Sequence[int], dilation_ratio: float = 0.02) -> int:
    """Width in pixels of the boundary in an image of a height and width."""
    return max(1, round(dilation_ratio * float(np.hypot(*size))))


def boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Which pixels are within `width` pixels of another label or of the image's edge.

    Args:
        labels: `(height, width)` integers.
        width: Distance in pixels, diagonal steps as long as others.

    Returns:
        `(height, width)` bool.
    """
    labels = labels.astype(np.int32)
    outside = int(labels.min(initial=0)) - 1
    window = {"size": 2 * width + 1, "mode": "constant", "cval": outside}
    return ndimage.minimum_filter(labels, **window) != ndimage.maximum_filter(labels, **window)
