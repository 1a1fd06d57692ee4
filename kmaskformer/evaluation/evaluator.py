"""Evaluators: from a model's outputs for one image, and that image's truth, to named scores.

An evaluator works in two steps. `predict` turns outputs into small integer maps at the image's original size; it is
written in `keras.ops`, so that it runs compiled on the accelerator. `update` counts in NumPy. What is kept between
images are counts, of constant size; only average precision and single images' scores (`ScoredImages`) need a few bytes
for every detection or image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kmaskformer.data.overlaps import settle_overlaps
from kmaskformer.data.printable import printable
from kmaskformer.evaluation.joint_runs import joint_runs
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality, SegmentTable
from kmaskformer.inference.general import general_semantic
from kmaskformer.inference.pairs import best_classes, select_queries
from kmaskformer.inference.panoptic import panoptic_inference
from kmaskformer.inference.postprocess import INFERENCES
from kmaskformer.inference.restore import Size, restore_mask_logits
from kmaskformer.inference.strips import mean_semantic_map, pixel_view, semantic_map_in_strips
from kmaskformer.structures import VOID, DatasetInfo


class ImageOutputs:
    """A model's outputs for one image, and the sizes that lead back to the original.

    Args:
        outputs: `ModelOutputs` with a batch of 1: `class_logits` and `mask_logits`, or a per-pixel model's `logits`.
        padded_size: Size of the batch inside the model, after padding.
        image_size: Size of the image within it.
        output_size: The image's original size, which predictions shall have.
    """

    def __init__(self, outputs: Mapping[str, Any], padded_size: Size, image_size: Size, output_size: Size) -> None:
        self.outputs = outputs
        self.padded_size = padded_size
        self.image_size = image_size
        self.output_size = output_size

    @functools.cached_property
    def restored_mask_logits(self) -> Any:
        """`(1, queries, height, width)` mask logits at the original size; computed once for all evaluators."""
        return restore_mask_logits(self["mask_logits"], self.padded_size, self.image_size, self.output_size)

    def restored_pairs(self, score_threshold: float | None) -> tuple[Any, Any]:
        """Class logits and mask logits at the original size of the pairs that `best_classes` keeps.

        Ten of a hundred typically, so that no more masks than matter are enlarged; at least one.
        """
        kept = best_classes(self["class_logits"], score_threshold)[2]
        class_logits, mask_logits = select_queries(self["class_logits"], self["mask_logits"], kept)
        return class_logits, restore_mask_logits(mask_logits, self.padded_size, self.image_size, self.output_size)

    def __contains__(self, key: str) -> bool:
        return key in self.outputs

    def __getitem__(self, key: str) -> Any:
        if key not in self.outputs:
            raise ValueError(
                f"This evaluator needs a model with `{key}` among its outputs. Received: {sorted(self.outputs)}; "
                "per-pixel models have semantic scores only."
            )
        return self.outputs[key]


class Truth(NamedTuple):
    """Ground truth of one image in NumPy, at its original size.

    `segment_map`: `(height, width)` int32, index into the table or -1. `labels`: `(segments,)` int32 contiguous class
    ids. `is_crowd`, `valid`: `(segments,)` bool; rows that are not valid are padding. `image_id`: for messages.
    `overlaps`: where segments may overlap, the map of regions and the table `membership` of `structures.Sample`;
    `segment_map` then gives each pixel to the smallest of its segments.
    """

    segment_map: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    valid: np.ndarray
    image_id: str
    overlaps: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of_batch(cls, targets: Mapping[str, np.ndarray], index: int) -> Truth:
        """One image of the evaluation targets (`structures.Targets`) of a batch."""
        one = {key: value[index] for key, value in targets.items()}
        height, width = one["original_size"]
        one["segment_map"] = one["segment_map"][:height, :width]
        return cls(
            segment_map=settle_overlaps(one)["segment_map"],
            labels=one["labels"],
            is_crowd=one["is_crowd"].astype(bool),
            valid=one["valid"].astype(bool),
            image_id=image_name(one["image_id"]),
            overlaps=_overlaps(one),
        )

    @classmethod
    def of_sample(cls, sample: Mapping[str, Any]) -> Truth:
        """The truth of a reader's sample (`structures.Sample`)."""
        labels = np.asarray(sample["labels"])
        return cls(
            segment_map=np.asarray(settle_overlaps(sample)["segment_map"]),
            labels=labels,
            is_crowd=np.asarray(sample["is_crowd"], bool),
            valid=np.ones(len(labels), bool),
            image_id=image_name(sample["image_id"]),
            overlaps=_overlaps(sample),
        )

    def semantic_map(self) -> np.ndarray:
        """`(height, width)` class ids, -1 where a pixel is in no segment; crowd segments have their class."""
        return self.classes_of(self.segment_map)

    def classes_of(self, rows: np.ndarray) -> np.ndarray:
        """Class id of each row of the table, -1 for the row -1 and for rows that are not valid."""
        labels = np.where(self.valid, self.labels, VOID)
        # -1 reads the last entry.
        return np.append(labels, VOID)[rows]

    def panoptic(self) -> tuple[np.ndarray, SegmentTable]:
        """`(height, width)` segment ids from 1, 0 = void, and their table."""
        rows = np.flatnonzero(self.valid)
        return self.segment_map + 1, SegmentTable.from_columns(rows + 1, self.labels[rows], self.is_crowd[rows])


def image_name(image_id: Any) -> str:
    """The name of an image, which batches hold as bytes."""
    return image_id.decode() if isinstance(image_id, bytes) else printable(str(image_id))


def _overlaps(truth: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    return (truth["segment_map"], truth["membership"]) if "membership" in truth else None


class Evaluator(Protocol):
    """What `evaluate` asks of an evaluator; `name` is the first part of its scores' names."""

    name: str

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""

    def reset(self) -> None:
        """Forgets all images."""

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """Predictions for one image as tensors without a batch axis; written in `keras.ops`, compiled by the caller."""

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image; `predictions` are those of `predict`, in NumPy."""

    def state(self) -> dict[str, np.ndarray]:
        """What has been counted, as arrays by name."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""

    def result(self) -> dict[str, float]:
        """Scores of all images so far, named `name/score` or `name/score/class`."""


class MetricEvaluator:
    """An evaluator around one streaming metric."""

    name: str
    metric_class: type

    def __init__(self, inference: str) -> None:
        if inference not in INFERENCES:
            raise ValueError(f"`inference` must be one of {INFERENCES}. Received: inference={inference!r}")
        self.inference = inference
        self._metric: Any = None
        self._info: DatasetInfo | None = None

    @property
    def info(self) -> DatasetInfo:
        """The label space that `bind` gave."""
        self._check_bound()
        return self._info

    @property
    def metric(self) -> Any:
        """The streaming metric, for its counts."""
        self._check_bound()
        return self._metric

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""
        self._info = info
        self._metric = self.metric_class.from_info(info)

    def reset(self) -> None:
        """Forgets all images."""
        self.metric.reset()

    def merge(self, other: MetricEvaluator) -> None:
        """Adds the images that another evaluator of this kind has seen."""
        self.metric.merge(other.metric)

    def state(self) -> dict[str, np.ndarray]:
        """What has been counted, as arrays."""
        return self.metric.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        self.metric.load_state(state)

    def result(self) -> dict[str, float]:
        """Scores of all images so far, named `name/score` or `name/score/class`."""
        return {f"{self.name}/{key}": value for key, value in self.metric.result().items()}

    def _check_bound(self) -> None:
        if self._info is None:
            raise ValueError(f"The {self.name} evaluator knows no classes yet; call bind(dataset_info) first.")


class SemanticEvaluator(MetricEvaluator):
    """mIoU and its relatives; see `MeanIoU.result` for the scores.

    Args:
        inference: `default` sums over all pairs of class and mask, `general` gives each pixel to one pair.
        restore: What default inference brings to the original size: `scores`, the class scores (the published
            semantic models), or `masks`, the mask logits before inference (the published panoptic models; needs less
            memory where there are more classes than queries).

    Raises:
        ValueError: If an argument is unknown.
    """

    name = "semantic"
    metric_class = MeanIoU

    def __init__(self, inference: str = "default", restore: str = "scores") -> None:
        super().__init__(inference)
        if restore not in ("scores", "masks"):
            raise ValueError(f'`restore` must be "scores" or "masks". Received: restore={restore!r}')
        self.restore = restore

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """`class_map` `(height, width)` int32 contiguous class ids, -1 where no pair takes part."""
        if "logits" not in outputs and self.inference == "general":
            return {"class_map": general_semantic(outputs["class_logits"], outputs.restored_mask_logits)[0][0]}
        sizes = (outputs.padded_size, outputs.image_size, outputs.output_size)
        if "logits" in outputs:
            view = pixel_view(outputs["logits"], outputs.image_size)
            return {"class_map": mean_semantic_map([view], outputs.output_size)[0][0]}
        logits = (outputs["class_logits"], outputs["mask_logits"])
        return {"class_map": semantic_map_in_strips(*logits, *sizes, self.restore == "masks")[0][0]}

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        rows, predicted, lengths = joint_runs(truth.segment_map, predictions["class_map"])
        self.metric.update_runs(truth.classes_of(rows).astype(np.int64), predicted, lengths)


class PanopticEvaluator(MetricEvaluator):
    """Panoptic quality; see `PanopticQuality.result` for the scores.

    Args:
        object_mask_threshold: Pairs must have a greater class score to take part, 0..1. Default inference only.
        overlap_threshold: Part of its mask that a pair must keep, 0..1. Default inference only.
        inference: `default` with the two filters, `general` without them.

    Raises:
        ValueError: If `inference` is unknown or a threshold is not in 0..1.
    """

    name = "panoptic"
    metric_class = PanopticQuality

    def __init__(
        self, object_mask_threshold: float = 0.8, overlap_threshold: float = 0.8, inference: str = "default"
    ) -> None:
        super().__init__(inference)
        for key, value in (("object_mask_threshold", object_mask_threshold), ("overlap_threshold", overlap_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{key}` must lie in 0..1. Received: {key}={value}")
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """The map and the table of `panoptic_inference`, without a batch axis."""
        general = self.inference == "general"
        thresholds = (None, None) if general else (self.object_mask_threshold, self.overlap_threshold)
        result = panoptic_inference(*outputs.restored_pairs(thresholds[0]), self.info.thing_ids, *thresholds)
        return {key: result[key][0] for key in ("panoptic_map", "valid", "segment_ids", "category_ids")}

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        valid = predictions["valid"].astype(bool)
        table = SegmentTable.from_columns(predictions["segment_ids"][valid], predictions["category_ids"][valid])
        self.metric.update(predictions["panoptic_map"], table, *truth.panoptic())


class CombinedEvaluator:
    """Several evaluators as one.

    Args:
        evaluators: Evaluators of different names.

    Raises:
        ValueError: If there is none, or two have the same name and would overwrite each other's scores.
    """

    name = "combined"

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self.evaluators = {evaluator.name: evaluator for evaluator in evaluators}
        names = [evaluator.name for evaluator in evaluators]
        if not names:
            raise ValueError("`evaluators` must hold at least one evaluator. Received: none")
        if len(self.evaluators) < len(names):
            raise ValueError(f"Evaluators must have different names, for their scores do. Received: {names}")

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""
        for evaluator in self.evaluators.values():
            evaluator.bind(info)

    def reset(self) -> None:
        """Forgets all images."""
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def predict(self, outputs: ImageOutputs) -> dict[str, dict[str, Any]]:
        """Each evaluator's predictions, by its name."""
        return {name: evaluator.predict(outputs) for name, evaluator in self.evaluators.items()}

    def update(self, predictions: Mapping[str, Mapping[str, np.ndarray]], truth: Truth) -> None:
        """Counts one image in every evaluator.

        Where one of them fails, those before it have counted the image and those after it have not: evaluators cannot
        take an image back, and copies of their counts, to return to, would cost more than an image's part in scores.
        """
        for name, evaluator in self.evaluators.items():
            evaluator.update(predictions[name], truth)

    def merge(self, other: CombinedEvaluator) -> None:
        """Adds the images that another evaluator with the same parts has seen."""
        for name, evaluator in self.evaluators.items():
            evaluator.merge(other.evaluators[name])

    def state(self) -> dict[str, np.ndarray]:
        """The states of all evaluators, named `evaluator/array`."""
        return {f"{name}/{key}": v for name, part in self.evaluators.items() for key, v in part.state().items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`.

        Raises:
            ValueError: If it is that of other evaluators or classes.
        """
        names = {key.partition("/")[0] for key in state}
        if names != set(self.evaluators):
            raise ValueError(
                f"The state must be that of the evaluators {sorted(self.evaluators)}. Received: {sorted(names)}"
            )
        for name, evaluator in self.evaluators.items():
            parts = {key.partition("/")[2]: values for key, values in state.items() if key.startswith(f"{name}/")}
            evaluator.load_state(parts)

    def result(self) -> dict[str, float]:
        """All scores in one dict."""
        return {key: value for evaluator in self.evaluators.values() for key, value in evaluator.result().items()}
