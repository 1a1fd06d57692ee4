"""Panoptic quality by the official tool's rules, streaming and mergeable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kmaskformer.evaluation.id_places import places_of
from kmaskformer.evaluation.joint_runs import add_to_cells, joint_runs
from kmaskformer.evaluation.mean_iou import checked_class_names, mean_or_nan
from kmaskformer.evaluation.state import check_mergeable, checked_state
from kmaskformer.structures import DatasetInfo

_VOID_ID = 0
_COUNTS = ("true_positives", "false_positives", "false_negatives", "iou_sums")


class SegmentTable(NamedTuple):
    """The segments of one map, as arrays `(segments,)`.

    `ids`: value in the map. `category_ids`: contiguous class ids. `is_crowd`: a group of things that need not be told
    apart (truth only). `areas`: pixels by which the truth states its size, at least those in the map, -1 = count them.
    """

    ids: np.ndarray
    category_ids: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, segments: SegmentTable | Sequence[Mapping[str, Any]]) -> SegmentTable:
        """The table of a list of dicts with `id`, `category_id` and optionally `iscrowd` and `area`."""
        if isinstance(segments, SegmentTable):
            return segments
        return cls.from_columns(
            [segment["id"] for segment in segments],
            [segment["category_id"] for segment in segments],
            [_crowd_flag(segment.get("iscrowd", segment.get("is_crowd", 0))) for segment in segments],
            [segment.get("area", -1) for segment in segments],
        )

    @classmethod
    def from_columns(cls, ids: Any, category_ids: Any, is_crowd: Any = None, areas: Any = None) -> SegmentTable:
        """The table of array-likes; no crowd and counted areas where not given."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if len(set(ids.tolist())) != ids.size:  # for so few a tenth of the time of `np.unique`
            raise ValueError(f"A segment table must not repeat an id. Received: ids={ids.tolist()}")
        table = cls(
            ids,
            np.asarray(category_ids, np.int64).reshape(-1),
            np.zeros(ids.size, bool) if is_crowd is None else np.asarray(is_crowd).astype(bool).reshape(-1),
            np.full(ids.size, -1, np.int64) if areas is None else np.asarray(areas, np.int64).reshape(-1),
        )
        if len({column.size for column in table}) > 1:
            lengths = {name: column.size for name, column in table._asdict().items()}
            raise ValueError(f"The columns of a segment table must have one length. Received: {lengths}")
        return table


def _crowd_flag(value: Any) -> bool:
    # As a truth value the text "0" would be true, and a 2, which is no crowd for panopticapi, too.
    if value not in (0, 1):
        raise ValueError(f"`iscrowd` of a segment must be 0 or 1, or a bool. Received: {value!r}")
    return bool(value)


class PanopticQuality:
    """PQ, SQ and RQ over any number of images, in constant memory.

    The rules, and every count, are panopticapi's. A predicted and a true segment of one class match if their IoU is
    above 0.5, where predicted pixels on void do not count into the union. An unmatched true segment is a false
    negative unless it is crowd. An unmatched predicted segment is a false positive unless more than half of it lies
    on void or on the crowd segment of its class (on the last one in the table, should there be several).

    Args:
        num_classes: Number of classes K.
        thing_ids: Contiguous ids of the countable classes; all others are stuff.
        class_names: Names for the per-class entries of `result`, by default `class 0`, `class 1`, ...

    References:
        - [Kirillov et al., Panoptic Segmentation](https://arxiv.org/abs/1801.00868)
    """

    def __init__(
        self, num_classes: int, thing_ids: Sequence[int] = (), class_names: Sequence[str] | None = None
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes}")
        outside = [i for i in thing_ids if not 0 <= i < num_classes]
        if outside:
            raise ValueError(f"`thing_ids` must lie in 0..{num_classes - 1}. Received: {outside}")
        self.num_classes = num_classes
        self.is_thing = np.isin(np.arange(num_classes), list(thing_ids))
        self.class_names = checked_class_names(class_names, num_classes)
        self.reset()

    @classmethod
    def from_info(cls, info: DatasetInfo) -> PanopticQuality:
        """A metric for a dataset."""
        return cls(info.num_classes, info.thing_ids, info.class_names)

    def reset(self) -> None:
        """Forgets all images."""
        self.true_positives = np.zeros(self.num_classes, np.int64)
        self.false_positives = np.zeros(self.num_classes, np.int64)
        self.false_negatives = np.zeros(self.num_classes, np.int64)
        self.iou_sums = np.zeros(self.num_classes, np.float64)

    def update(
        self,
        predicted_map: np.ndarray,
        predicted_segments: SegmentTable | Sequence[Mapping[str, Any]],
        true_map: np.ndarray,
        true_segments: SegmentTable | Sequence[Mapping[str, Any]],
    ) -> None:
        """Adds one image.

        Args:
            predicted_map: `(height, width)` segment ids, 0 = void.
            predicted_segments: The predicted segments: their ids and contiguous class ids.
            true_map: Same size; segment ids, 0 = void. Pixels of an id that the table lacks belong to nothing, and
                are not void either.
            true_segments: The true segments; `is_crowd` and `areas` matter here only.

        Raises:
            ValueError: If sizes differ, a class id is out of range, a table repeats an id, the predicted map and its
                table do not hold the same segments, or a true segment is larger than its table states.
        """
        predicted, true = SegmentTable.of(predicted_segments), SegmentTable.of(true_segments)
        self._check_categories("predicted", predicted)
        self._check_categories("true", true)
        self._count(predicted, true, _overlaps(np.asarray(predicted_map), predicted, np.asarray(true_map), true))

    def merge(self, other: PanopticQuality) -> PanopticQuality:
        """Adds the images that another instance has seen, for instance in another process; returns self."""
        check_mergeable(self, other)
        for key in _COUNTS:
            setattr(self, key, getattr(self, key) + getattr(other, key))
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that has been counted, as arrays; `load_state` goes on from there."""
        return {key: getattr(self, key).copy() for key in _COUNTS}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        for key, values in checked_state(state, self.state()).items():
            setattr(self, key, values)

    def result(self) -> dict[str, float]:
        """The scores of all images so far, all but the counts in 0..1.

        Returns:
            A dict of floats: `PQ`, `SQ`, `RQ`, each also with `_things` and `_stuff`: means over the classes with
            tp + fp + fn > 0, NaN where there is none. Per class `PQ/<name>`, `SQ/<name>`, `RQ/<name>` (NaN where
            tp + fp + fn = 0), the counts `TP/<name>`, `FP/<name>`, `FN/<name>`, and `IoU_sum/<name>`, the summed
            IoU of the matches.
        """
        columns = self._per_class()
        counted = ~np.isnan(columns["PQ"])
        scores = {}
        groups = (("", counted), ("_things", counted & self.is_thing), ("_stuff", counted & ~self.is_thing))
        for suffix, group in groups:
            scores.update({f"{key}{suffix}": mean_or_nan(columns[key][group]) for key in ("PQ", "SQ", "RQ")})
        for key, values in columns.items():
            scores.update({f"{key}/{name}": float(v) for name, v in zip(self.class_names, values, strict=True)})
        return scores

    def _per_class(self) -> dict[str, np.ndarray]:
        tp, fp, fn = self.true_positives, self.false_positives, self.false_negatives
        total = tp + 0.5 * fp + 0.5 * fn
        with np.errstate(divide="ignore", invalid="ignore"):
            quality = np.where(total > 0, self.iou_sums / total, np.nan)
            recognition = np.where(total > 0, tp / total, np.nan)
            segmentation = np.where(tp > 0, self.iou_sums / tp, np.where(total > 0, 0.0, np.nan))
        return {
            "PQ": quality,
            "SQ": segmentation,
            "RQ": recognition,
            "TP": tp,
            "FP": fp,
            "FN": fn,
            "IoU_sum": self.iou_sums,
        }

    def _count(self, predicted: SegmentTable, true: SegmentTable, overlaps: _Overlaps) -> None:
        iou = overlaps.iou()
        same_class = true.category_ids[:, None] == predicted.category_ids[None, :]
        matched = same_class & ~true.is_crowd[:, None] & (iou > 0.5)
        classes = true.category_ids[np.nonzero(matched)[0]]
        np.add.at(self.true_positives, classes, 1)
        np.add.at(self.iou_sums, classes, iou[matched])
        missed = ~matched.any(axis=1) & ~true.is_crowd
        np.add.at(self.false_negatives, true.category_ids[missed], 1)
        excused = (overlaps.void + _crowd_overlap(predicted, true, overlaps.pairs)) / overlaps.predicted_areas > 0.5
        wrong = ~matched.any(axis=0) & ~excused
        np.add.at(self.false_positives, predicted.category_ids[wrong], 1)

    def _check_categories(self, kind: str, table: SegmentTable) -> None:
        outside = (table.category_ids < 0) | (table.category_ids >= self.num_classes)
        if outside.any():
            raise ValueError(
                f"Class ids of {kind} segments must lie in 0..{self.num_classes - 1} (contiguous, not the dataset's "
                f"own). Received: {np.unique(table.category_ids[outside])[:5].tolist()}"
            )


class _Overlaps(NamedTuple):
    """Pixel counts of an image: of pairs `(true, predicted)`, of predicted segments on void, of whole segments."""

    pairs: np.ndarray
    void: np.ndarray
    true_areas: np.ndarray
    predicted_areas: np.ndarray

    def iou(self) -> np.ndarray:
        """`(true, predicted)` intersection over union without the void pixels; 0 where a pair does not meet."""
        union = self.predicted_areas[None, :] + self.true_areas[:, None] - self.pairs - self.void[None, :]
        return np.divide(self.pairs, union, out=np.zeros(self.pairs.shape), where=self.pairs > 0)


def _overlaps(
    predicted_map: np.ndarray, predicted: SegmentTable, true_map: np.ndarray, true: SegmentTable
) -> _Overlaps:
    true_ids, predicted_ids, lengths = joint_runs(true_map, predicted_map)
    # Void is a row and a column of the counts, in the tables or not; the last of each are of ids that are neither.
    rows, columns = _with_void(true.ids), _with_void(predicted.ids)
    counts = np.zeros((rows.size + 1, columns.size + 1), np.int64)
    places = places_of(predicted_ids, columns)
    add_to_cells(counts, places_of(true_ids, rows) * counts.shape[1] + places, lengths)
    if counts[:, -1].any():
        check_all_listed(predicted_ids[places == columns.size])
    areas = counts.sum(axis=0)[: predicted.ids.size]
    _check_all_present(predicted.ids, areas)
    true_pixels = counts.sum(axis=1)[: true.ids.size]
    _check_stated_areas(true, true_pixels)
    true_areas = np.where((true.areas >= 0) & ~true.is_crowd, true.areas, true_pixels)
    counts = counts[:, : predicted.ids.size]
    return _Overlaps(counts[: true.ids.size], counts[rows.tolist().index(_VOID_ID)], true_areas, areas)


def _with_void(ids: np.ndarray) -> np.ndarray:
    return ids if _VOID_ID in ids else np.append(ids, _VOID_ID)


def _crowd_overlap(predicted: SegmentTable, true: SegmentTable, pairs: np.ndarray) -> np.ndarray:
    overlap = np.zeros(predicted.ids.size, np.int64)
    crowd_rows = {int(true.category_ids[row]): row for row in np.flatnonzero(true.is_crowd)}
    for category_id, row in crowd_rows.items():
        same_class = predicted.category_ids == category_id
        overlap[same_class] = pairs[row, same_class]
    return overlap


def _check_all_present(ids: np.ndarray, areas: np.ndarray) -> None:
    absent = ids[areas == 0]
    if absent.size:
        raise ValueError(
            "Every predicted segment must have pixels in the map. "
            f"Received segments without any: ids={absent[:5].tolist()}"
        )


def check_all_listed(unlisted: np.ndarray) -> None:
    """Raises a `ValueError` if ids of a predicted map that its table lacks are other than void."""
    unlisted = np.unique(unlisted[unlisted != _VOID_ID])
    if unlisted.size:
        raise ValueError(
            "Every non-zero id of the predicted map must be in its segment table. "
            f"Received a map with ids that the table lacks: {unlisted[:5].tolist()}"
        )


def _check_stated_areas(true: SegmentTable, pixels: np.ndarray) -> None:
    # Too small an area makes the union too small, and an IoU above 1. A crowd matches nothing, so that its is not used.
    wrong = np.flatnonzero((true.areas >= 0) & (true.areas < pixels) & ~true.is_crowd)
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            "A true segment's `area` must not be smaller than its pixels in the map. "
            f"Received: area {true.areas[row]} of id {true.ids[row]}, which has {pixels[row]} pixels, and "
            f"{wrong.size - 1} more of this kind; correct the areas, or leave them out to have pixels counted"
        )
