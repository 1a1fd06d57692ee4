"""The scores of the Cityscapes benchmark: IoU and instance-weighted IoU, by class and by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kmaskformer.evaluation.joint_runs import joint_runs
from kmaskformer.evaluation.mean_iou import MeanIoU, checked_class_names, mean_or_nan
from kmaskformer.evaluation.state import check_mergeable, checked_state
from kmaskformer.structures import VOID, DatasetInfo

CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
"""The benchmark's categories and their classes."""

AVERAGE_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Mean area in pixels of the instances of a class in the benchmark's training images."""


class CityscapesIoU:
    """IoU and iIoU over any number of images, in constant memory.

    IoU is that of `MeanIoU`; for a category its classes count as one. iIoU weighs every true pixel of an instance by
    the average size of its class over the size of the instance, so that small instances count as much as large ones:
    weighted hits / (weighted hits + weighted misses + false pixels), where false pixels, predicted on other classes,
    have no instance and weigh 1. Pixels of groups (crowds) are in no instance and weigh nothing in hits and misses.
    iIoU exists for the classes with instances and for categories that hold one.

    Args:
        class_names: Name of each class.
        categories: Names of categories and of their classes. Classes of the dataset that no category names have none.
        average_sizes: Mean area in pixels of the instances, for each class that has instances.

    Raises:
        ValueError: If a name of a class with instances is unknown.

    References:
        - [Cordts et al., The Cityscapes Dataset](https://arxiv.org/abs/1604.01685), section 4.1
    """

    def __init__(
        self,
        class_names: Sequence[str],
        categories: Mapping[str, Sequence[str]] = CATEGORIES,
        average_sizes: Mapping[str, float] = AVERAGE_SIZES,
    ) -> None:
        self.class_names = checked_class_names(class_names, len(class_names))
        self.average_sizes = np.array([average_sizes.get(name, 0.0) for name in self.class_names])
        if not self.average_sizes.any():
            raise ValueError(
                f"`average_sizes` must name classes of the dataset: {sorted(average_sizes)}. "
                f"Received: class_names={self.class_names}"
            )
        members = {key: np.isin(self.class_names, list(names)) for key, names in categories.items()}
        self.categories = {key: rows for key, rows in members.items() if rows.any()}
        self._pixels = MeanIoU(len(self.class_names), VOID, self.class_names)
        self.reset()

    @classmethod
    def from_info(cls, info: DatasetInfo) -> CityscapesIoU:
        """A metric for a dataset with the benchmark's names."""
        return cls(info.class_names)

    def reset(self) -> None:
        """Forgets all images."""
        self._pixels.reset()
        # Weighted pixels: all, hits of the class, hits of its category.
        self._weighted = np.zeros((3, len(self.class_names)))

    def update(self, prediction: np.ndarray, segment_map: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray) -> None:
        """Adds one image.

        Args:
            prediction: `(height, width)` contiguous class ids; anything else is void.
            segment_map: Same size; row of the table, -1 where unlabelled.
            labels: `(segments,)` class ids, -1 for a row that does not count.
            is_crowd: `(segments,)` bool.
        """
        rows, predicted, lengths = joint_runs(segment_map, prediction)
        predicted = predicted.astype(np.int64)
        true = np.append(labels, VOID)[rows].astype(np.int64)
        self._pixels.update_runs(true, predicted, lengths)
        sizes = np.bincount(rows[rows >= 0], lengths[rows >= 0], minlength=len(labels))
        averages = np.where((labels >= 0) & ~is_crowd, self.average_sizes[labels], 0.0)
        weights = np.divide(averages, sizes, out=np.zeros(len(labels)), where=sizes > 0)
        weighted = np.append(weights, 0.0)[rows] * lengths
        category = np.zeros(len(self.class_names) + 1, np.int64)
        for number, members in enumerate(self.categories.values(), start=1):
            category[:-1][members] = number
        known = (true >= 0) & (predicted >= 0) & (predicted < len(self.class_names))
        shown = np.where(known, predicted, VOID)
        hits = known & (shown == true)
        category_hits = known & (category[shown] == category[true]) & (category[true] > 0)
        for row, counted in enumerate((true >= 0, hits, category_hits)):
            np.add.at(self._weighted[row], true[counted], weighted[counted])

    def merge(self, other: CityscapesIoU) -> CityscapesIoU:
        """Adds the images that another instance has seen; returns self."""
        check_mergeable(self, other)
        self._pixels.merge(other._pixels)
        self._weighted += other._weighted
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that has been counted, as arrays; `load_state` goes on from there."""
        return {**self._pixels.state(), "weighted": self._weighted.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        state = checked_state(state, self.state())
        self._weighted = state.pop("weighted")
        self._pixels.load_state(state)

    def result(self) -> dict[str, float]:
        """The scores of all images so far, in 0..1.

        Returns:
            `IoU`, `iIoU`, `IoU_categories`, `iIoU_categories` (means over those that are defined), per class
            `IoU/<name>` and `iIoU/<name>`, per category `IoU_categories/<name>` and `iIoU_categories/<name>`; NaN where
            undefined.
        """
        counts = self._pixels.confusion
        names = self.class_names
        classes = {name: np.arange(len(names)) == row for row, name in enumerate(names)}
        with_instances = self.average_sizes > 0
        tables = {
            "IoU": {name: _iou(counts, rows) for name, rows in classes.items()},
            "iIoU": {n: self._weighted_iou(counts, r, 1) for n, r in classes.items() if with_instances[r].any()},
            "IoU_categories": {name: _iou(counts, rows) for name, rows in self.categories.items()},
            "iIoU_categories": {
                n: self._weighted_iou(counts, r, 2) for n, r in self.categories.items() if with_instances[r].any()
            },
        }
        means = {key: mean_or_nan(_defined(table)) for key, table in tables.items()}
        return means | {f"{key}/{name}": value for key, table in tables.items() for name, value in table.items()}

    def _weighted_iou(self, counts: np.ndarray, rows: np.ndarray, kind: int) -> float:
        hits, total = self._weighted[kind, rows].sum(), self._weighted[0, rows].sum()
        false = counts[~rows][:, :-1][:, rows].sum()
        return float(hits / (total + false)) if total + false > 0 else float("nan")


def _iou(counts: np.ndarray, rows: np.ndarray) -> float:
    hits = counts[rows][:, :-1][:, rows].sum()
    union = counts[rows].sum() + counts[:, :-1][:, rows].sum() - hits
    return float(hits / union) if union else float("nan")


def _defined(table: Mapping[str, float]) -> np.ndarray:
    values = np.array(list(table.values()))
    return values[~np.isnan(values)]
