"""COCO's average precision and recall of instances, streaming and mergeable, without pycocotools.

The rules are those of `pycocotools.COCOeval`, and so are the numbers. What an image contributes is decided when the
image comes in; only a detection's score and 21 bytes about it are kept, since precision needs the ranking of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kmaskformer.evaluation.mean_iou import checked_class_names, mean_or_nan
from kmaskformer.evaluation.state import check_mergeable, checked_state
from kmaskformer.structures import DatasetInfo

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""Smallest and largest area in pixels, both included, of all, small, medium and large objects."""
MAX_DETECTIONS = (1, 10, 100)
"""So many detections of a class and image count, those of the highest scores."""


class Instances(NamedTuple):
    """Detected or true instances of one image, as arrays `(instances,)`.

    `category_ids`: contiguous class ids. `areas`: pixels. `scores`: confidence of detections. `is_crowd`: whether a
    true instance is a group, which may be found any number of times and need not be.
    """

    category_ids: np.ndarray
    areas: np.ndarray
    scores: np.ndarray | None = None
    is_crowd: np.ndarray | None = None


class AveragePrecision:
    """AP and AR over any number of images.

    Args:
        num_classes: Number of classes.
        class_names: Names for the per-class entries of `result`, by default `class 0`, `class 1`, ...
        thing_ids: The classes that count; all if None.

    References:
        - [Lin et al., Microsoft COCO](https://arxiv.org/abs/1405.0312)
    """

    def __init__(
        self, num_classes: int, class_names: Sequence[str] | None = None, thing_ids: Sequence[int] | None = None
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes}")
        self.num_classes = num_classes
        self.class_names = checked_class_names(class_names, num_classes)
        self.thing_ids = tuple(range(num_classes)) if thing_ids is None else tuple(thing_ids)
        self.reset()

    @classmethod
    def from_info(cls, info: DatasetInfo) -> AveragePrecision:
        """A metric for a dataset; stuff classes do not count."""
        return cls(info.num_classes, info.class_names, info.thing_ids)

    def reset(self) -> None:
        """Forgets all images."""
        self._truths = np.zeros((self.num_classes, len(AREA_RANGES)), np.int64)
        self._parts = [_no_detections()]

    def update(self, detections: Instances, truths: Instances, iou: np.ndarray) -> None:
        """Adds one image.

        Args:
            detections: With `scores`.
            truths: With `is_crowd`.
            iou: `(detections, truths)`: intersection over union, for a crowd intersection over the detection. Pairs of
                different classes are not read.

        Raises:
            ValueError: If a class id is out of range or the IoU matrix has another shape.
        """
        self._check(detections, truths, iou)
        for category_id in np.union1d(detections.category_ids, truths.category_ids):
            found = np.flatnonzero(detections.category_ids == category_id)
            found = found[np.argsort(-detections.scores[found], kind="stable")][: MAX_DETECTIONS[-1]]
            true = np.flatnonzero(truths.category_ids == category_id)
            crowd = truths.is_crowd[true].astype(bool)
            ignored_truths = crowd | ~_in_range(truths.areas[true])
            self._truths[category_id] += (~ignored_truths).sum(axis=1)
            matched, ignored = _match(iou[np.ix_(found, true)], ignored_truths, crowd)
            ignored |= ~matched & ~_in_range(detections.areas[found]).T[:, :, None]
            self._parts.append(
                {
                    "category_ids": np.full(found.size, category_id, np.int32),
                    "scores": detections.scores[found].astype(np.float64),
                    "ranks": np.arange(found.size, dtype=np.uint8),
                    "matched": _packed(matched),
                    "ignored": _packed(ignored),
                }
            )

    def merge(self, other: AveragePrecision) -> AveragePrecision:
        """Adds the images that another instance has seen; returns self.

        Detections of one score rank in the order in which they came, as in the official tool, so that where scores
        repeat the order of merging can show.
        """
        check_mergeable(self, other)
        self._truths += other._truths
        self._parts.extend(other._parts)
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that has been counted, as arrays; `load_state` goes on from there."""
        return {"truths": self._truths.copy(), **self._detections()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        state = checked_state(state, self.state(), variable=tuple(_no_detections()))
        self._truths = state.pop("truths")
        self._parts = [state]

    def result(self) -> dict[str, float]:
        """The scores of all images so far, in 0..1.

        Returns:
            `AP` (mean over the IoU thresholds 0.50, 0.55, ... 0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (by size),
            `AR1`, `AR10`, `AR100` (by detections allowed), `ARs`, `ARm`, `ARl`, and `AP/<name>` per class; NaN where
            there is nothing to find.
        """
        precision, recall = self._curves()
        columns = {"AP": precision[:, :, 0], "AP50": precision[0:1, :, 0], "AP75": precision[5:6, :, 0]}
        columns |= {f"AP{name}": precision[:, :, row] for row, name in enumerate(AREA_RANGES) if name}
        columns |= {f"AR{count}": recall[:, :, 0, column] for column, count in enumerate(MAX_DETECTIONS)}
        columns |= {f"AR{name}": recall[:, :, row, -1] for row, name in enumerate(AREA_RANGES) if name}
        scores = {name: mean_or_nan(values[~np.isnan(values)]) for name, values in columns.items()}
        for category_id in self.thing_ids:
            values = precision[:, category_id, 0]
            scores[f"AP/{self.class_names[category_id]}"] = mean_or_nan(values[~np.isnan(values)])
        return scores

    def _detections(self) -> dict[str, np.ndarray]:
        """All parts as one, which they then are."""
        if len(self._parts) > 1:
            self._parts = [{key: np.concatenate([part[key] for part in self._parts]) for key in self._parts[0]}]
        return dict(self._parts[0])

    def _curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision `(thresholds, classes, areas, recall levels)` and recall `(thresholds, classes, areas, limits)`."""
        shape = (len(IOU_THRESHOLDS), self.num_classes, len(AREA_RANGES))
        precision = np.full((*shape, len(RECALL_LEVELS)), np.nan)
        recall = np.full((*shape, len(MAX_DETECTIONS)), np.nan)
        everything = self._detections()
        for category_id in self.thing_ids:
            rows = everything["category_ids"] == category_id
            rows = {key: values[rows] for key, values in everything.items()}
            rows = {key: values[np.argsort(-rows["scores"], kind="stable")] for key, values in rows.items()}
            matched, ignored = _unpacked(rows["matched"]), _unpacked(rows["ignored"])
            for area, total in enumerate(self._truths[category_id]):
                if not total:
                    continue
                hits, misses = matched[:, area] & ~ignored[:, area], ~matched[:, area] & ~ignored[:, area]
                for column, limit in enumerate(MAX_DETECTIONS):
                    within = rows["ranks"] < limit
                    hit_sums, miss_sums = np.cumsum(hits[within], axis=0), np.cumsum(misses[within], axis=0)
                    recall[:, category_id, area, column] = hit_sums[-1] / total if len(hit_sums) else 0.0
                precision[:, category_id, area] = _precision_at_recall(hit_sums, miss_sums, total)
        return precision, recall

    def _check(self, detections: Instances, truths: Instances, iou: np.ndarray) -> None:
        expected = (detections.category_ids.size, truths.category_ids.size)
        if iou.shape != expected:
            raise ValueError(f"`iou` must have shape (detections, truths) = {expected}. Received: {iou.shape}")
        for ids in (detections.category_ids, truths.category_ids):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.num_classes:
                raise ValueError(
                    f"Class ids of instances must lie in 0..{self.num_classes - 1}. Received: {ids.min()}..{ids.max()}"
                )


def iou_of_overlaps(common: np.ndarray, areas: np.ndarray, true_areas: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """`(detections, truths)` intersection over union; over the detection's own area where the truth is a crowd.

    Args:
        common: `(detections, truths)` pixels in both.
        areas: `(detections,)` pixels.
        true_areas: `(truths,)` pixels.
        crowd: `(truths,)` bool.
    """
    union = np.where(crowd, areas[:, None], areas[:, None] + true_areas - common)
    return np.divide(common, union, out=np.zeros(common.shape), where=union > 0)


def _match(iou: np.ndarray, ignored_truths: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, in the order of their scores, find a true instance, and which of those an ignored one.

    Each takes the free instance of the largest IoU, the last of equals, an ignored one (crowd or of another size) only
    where no other reaches the threshold. A crowd is never used up.

    Args:
        iou: `(detections, truths)`, of one class and image.
        ignored_truths: `(areas, truths)` bool.
        crowd: `(truths,)` bool.

    Returns:
        Two bool arrays `(detections, areas, thresholds)`.
    """
    areas, thresholds = len(AREA_RANGES), len(IOU_THRESHOLDS)
    matched, ignored = (np.zeros((len(iou), areas, thresholds), bool) for _ in range(2))
    free = np.ones((areas, thresholds, iou.shape[1]), bool)
    preferred = np.broadcast_to(~ignored_truths[:, None], free.shape)
    for index in np.flatnonzero((iou >= IOU_THRESHOLDS[0]).any(axis=1)):
        eligible = free & (iou[index] >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None])
        wanted = eligible & preferred
        wanted = np.where(wanted.any(axis=-1, keepdims=True), wanted, eligible)
        overlaps = np.where(wanted, iou[index], -1.0)
        best = overlaps.shape[-1] - 1 - np.argmax(overlaps[..., ::-1], axis=-1)
        matched[index] = wanted.any(axis=-1)
        ignored[index] = matched[index] & np.take_along_axis(~preferred, best[..., None], axis=-1)[..., 0]
        taken = matched[index] & ~crowd[best]
        area, threshold = np.nonzero(taken)
        free[area, threshold, best[taken]] = False
    return matched, ignored


def _precision_at_recall(hits: np.ndarray, misses: np.ndarray, total: int) -> np.ndarray:
    """`(thresholds, recall levels)`: the best precision at each recall or beyond, 0 where it is never reached."""
    precision = hits / (misses + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    levels = np.zeros((len(IOU_THRESHOLDS), len(RECALL_LEVELS)))
    for row in range(len(IOU_THRESHOLDS)):
        places = np.searchsorted(hits[:, row] / total, RECALL_LEVELS, side="left")
        reached = places < len(hits)
        levels[row, reached] = precision[places[reached], row]
    return levels


def _in_range(areas: np.ndarray) -> np.ndarray:
    """`(area ranges, instances)` bool."""
    return np.array([(areas >= low) & (areas <= high) for low, high in AREA_RANGES.values()])


def _packed(flags: np.ndarray) -> np.ndarray:
    """`(detections, areas, thresholds)` bool as `(detections, areas)` uint16, one bit a threshold."""
    return (flags @ (1 << np.arange(flags.shape[-1]))).astype(np.uint16)


def _unpacked(bits: np.ndarray) -> np.ndarray:
    return (bits[..., None] >> np.arange(len(IOU_THRESHOLDS), dtype=np.uint16) & 1).astype(bool)


def _no_detections() -> dict[str, np.ndarray]:
    return {
        "category_ids": np.zeros(0, np.int32),
        "scores": np.zeros(0, np.float64),
        "ranks": np.zeros(0, np.uint8),
        "matched": np.zeros((0, len(AREA_RANGES)), np.uint16),
        "ignored": np.zeros((0, len(AREA_RANGES)), np.uint16),
    }
