"""Mean intersection over union and its relatives, from a streaming confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kmaskformer.evaluation.joint_runs import add_to_cells, joint_runs
from kmaskformer.evaluation.state import check_mergeable, checked_state
from kmaskformer.structures import VOID, DatasetInfo


class MeanIoU:
    """Semantic segmentation scores over any number of images, in constant memory.

    Pixels whose truth is `ignore_value` are left out altogether: predictions there are free. A prediction outside
    `0 .. num_classes - 1` (void) on a labelled pixel is wrong: it lowers the true class and is charged to no other.

    Args:
        num_classes: Number of classes K.
        ignore_value: Value of unlabelled pixels in truth maps; must not be a class id.
        class_names: Names for the per-class entries of `result`, by default `class 0`, `class 1`, ...
        void_to_class: If given, predictions outside `0 .. K-1` count as predictions of this class. Some tools do so.

    Raises:
        ValueError: If an argument is out of range.

    References:
        - [Everingham et al., 2015](https://doi.org/10.1007/s11263-014-0733-5), the PASCAL VOC measure.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_value: int = 255,
        class_names: Sequence[str] | None = None,
        void_to_class: int | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes}")
        if 0 <= ignore_value < num_classes:
            raise ValueError(
                f"`ignore_value` must not be one of the class ids 0..{num_classes - 1}; use 65535 (16-bit maps) or -1. "
                f"Received: ignore_value={ignore_value}"
            )
        if void_to_class is not None and not 0 <= void_to_class < num_classes:
            raise ValueError(
                f"`void_to_class` must be a class id 0..{num_classes - 1}. Received: void_to_class={void_to_class}"
            )
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.class_names = checked_class_names(class_names, num_classes)
        self.void_to_class = void_to_class
        # The cell of `256 * true + predicted`.
        self._cells_of_bytes = np.add.outer(self._row_cells(np.arange(256)), self._columns(np.arange(256))).reshape(-1)
        self.reset()

    @classmethod
    def from_info(cls, info: DatasetInfo) -> MeanIoU:
        """A metric for a dataset. Its ignore value is -1: no number of classes collides with that."""
        return cls(info.num_classes, ignore_value=VOID, class_names=info.class_names)

    def reset(self) -> None:
        """Forgets all images."""
        # The last row takes the ignored pixels, which no score reads.
        self._counts = np.zeros((self.num_classes + 1, self.num_classes + 1), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds one image, or a batch of images of one size; 8-bit maps are the fastest.

        Args:
            prediction: `(height, width)` or `(images, height, width)` contiguous class ids; anything else is void.
            truth: Same size; contiguous class ids or `ignore_value`.

        Raises:
            ValueError: If sizes differ, a map does not hold integers, or the truth holds another value.
        """
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.ndim < 3 or truth.shape != prediction.shape:
            self.update_runs(*joint_runs(truth, prediction))
            return
        for pair in zip(truth, prediction, strict=True):
            self.update_runs(*joint_runs(*pair))

    def update_runs(self, true: np.ndarray, predicted: np.ndarray, lengths: np.ndarray) -> None:
        """Adds pixels that are counted already, as `joint_runs` returns them.

        Args:
            true: `(runs,)` integers, class ids or `ignore_value`.
            predicted: `(runs,)` integers, class ids; anything else is void.
            lengths: `(runs,)` numbers of pixels.

        Raises:
            ValueError: If `true` holds another value.
        """
        cells = self._cells(true, predicted)
        if cells.max(initial=0) >= self._counts.size:
            self._raise_bad_truth(true)
        add_to_cells(self._counts, cells, lengths)

    def merge(self, other: MeanIoU) -> MeanIoU:
        """Adds the images that another instance has seen, for instance in another process; returns self."""
        check_mergeable(self, other)
        self._counts += other._counts
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that has been counted, as arrays; `load_state` goes on from there."""
        return {"counts": self._counts.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        self._counts = checked_state(state, self.state())["counts"]

    @property
    def confusion(self) -> np.ndarray:
        """`(K, K + 1)` int64 pixels; row = true class, column = predicted class, last column = void."""
        return self._counts[:-1].copy()

    def result(self) -> dict[str, float]:
        """The scores of all images so far, all in 0..1.

        Returns:
            A dict of floats, NaN where undefined:

            - `mIoU`: mean IoU over classes that occur in truth or prediction, so that inventing a class costs. Keras
              and detectron2 before July 2022 define it so (sum over true classes, divided by classes in either; a
              class found in predictions only has IoU 0), and published MaskFormer figures mean this one.
            - `mIoU_truth_classes`: mean IoU over classes that occur in the truth (detectron2 since July 2022).
            - `fwIoU`: IoU weighted by the frequency of the true class.
            - `mACC`: mean over true classes of the share of their pixels that is found.
            - `pACC`: share of labelled pixels that is right.
            - `IoU/<name>`, `ACC/<name>`: per class. IoU is undefined for a class in neither truth nor prediction,
              accuracy for a class that is not in the truth.
        """
        counts = self._counts[:-1]
        true_pixels, hits = counts.sum(axis=1), counts.diagonal()
        predicted_pixels = counts.sum(axis=0)[:-1]
        iou = _ratio(hits, true_pixels + predicted_pixels - hits)
        accuracy = _ratio(hits, true_pixels)
        present = true_pixels > 0
        total = true_pixels.sum()
        scores = {
            "mIoU": mean_or_nan(iou[~np.isnan(iou)]),
            "mIoU_truth_classes": mean_or_nan(iou[present]),
            "fwIoU": float(_ratio((iou[present] * true_pixels[present]).sum(), total)),
            "mACC": mean_or_nan(accuracy[present]),
            "pACC": float(_ratio(hits.sum(), total)),
        }
        for key, values in (("IoU", iou), ("ACC", accuracy)):
            scores.update({f"{key}/{name}": float(v) for name, v in zip(self.class_names, values, strict=True)})
        return scores

    def _cells(self, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        if not (_is_byte(true) and _is_byte(predicted)):
            return self._row_cells(true) + self._columns(predicted)
        pairs = true.astype(np.uint16)
        pairs <<= 8
        pairs |= predicted
        return self._cells_of_bytes.take(pairs)

    def _row_cells(self, true: np.ndarray) -> np.ndarray:
        """First cell of each value's row in the flat counts; beyond the last cell for what is no truth."""
        rows = self._class_or_last(true)
        rows[(rows == self.num_classes) & (true != self.ignore_value)] += 1
        return rows * (self.num_classes + 1)

    def _columns(self, predicted: np.ndarray) -> np.ndarray:
        columns = self._class_or_last(predicted)
        if self.void_to_class is not None:
            columns[columns == self.num_classes] = self.void_to_class
        return columns

    def _class_or_last(self, values: np.ndarray) -> np.ndarray:
        """The values as int64, K for all that are no class."""
        # Read as unsigned, negative numbers are huge, so that one minimum catches them too.
        return np.minimum(values.astype(np.int64).view(np.uint64), np.uint64(self.num_classes)).view(np.int64)

    def _raise_bad_truth(self, true: np.ndarray) -> None:
        outside = (true < 0) | (true >= self.num_classes)
        outside &= true != self.ignore_value
        raise ValueError(
            f"Truth must hold class ids 0..{self.num_classes - 1} or `ignore_value` {self.ignore_value}. "
            f"Received: {np.unique(true[outside])[:5].tolist()}; check the number of classes and the ignore value. "
            "Files with the dataset's own ids need a label space (`evaluate_files.py --label-space`)."
        )


def checked_class_names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names as a tuple; numbered where none are given; an error if there is not one per class."""
    if class_names is None:
        return DatasetInfo.numbered(num_classes).class_names
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        raise ValueError(
            f"`class_names` must hold {num_classes} different names, one per class. "
            f"Received: {len(class_names)} names, {len(set(class_names))} of them different"
        )
    return tuple(class_names)


def mean_or_nan(values: np.ndarray) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if values.size else float("nan")


def _is_byte(values: np.ndarray) -> bool:
    """Whether values are 0..255 by their dtype, so that a look-up replaces all arithmetic."""
    return values.dtype in (np.uint8, np.bool_)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, np.divide(numerator, denominator), np.nan)
