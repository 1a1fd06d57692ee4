"""Predictions written to files while they are scored."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.evaluation.evaluator import Evaluator, ImageOutputs, Truth
from kmaskformer.evaluation.prediction_files import PredictionFiles
from kmaskformer.structures import TASKS, DatasetInfo


class WrittenPredictions:
    """An evaluator that also writes what it scores, in the files of the official tools (`PredictionFiles`).

    Args:
        evaluator: A semantic, panoptic or instance evaluator.
        folder: Folder for the files; made if it is missing.

    Raises:
        ValueError: If there are no files for the evaluator's kind.
    """

    def __init__(self, evaluator: Evaluator, folder: str | os.PathLike) -> None:
        if evaluator.name not in TASKS:
            raise ValueError(f"Only {', '.join(TASKS)} predictions have files. Received: {evaluator.name}")
        self.evaluator = evaluator
        self.name = evaluator.name
        self.folder = Path(folder)
        self._files: PredictionFiles | None = None

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""
        self.evaluator.bind(info)
        self._files = PredictionFiles(self.folder, self.name, info)

    def reset(self) -> None:
        """Forgets all images; files of single images remain."""
        self.bind(self._files.info)

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """The evaluator's predictions."""
        return self.evaluator.predict(outputs)

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Writes one image, under its image id with `_` for `/` (`a/x` becomes `a_x`), and counts it."""
        # In this order, so that an image which cannot be written does not count either.
        self._files.add(truth.image_id.replace("/", "_"), _as_result(self.name, predictions))
        self.evaluator.update(predictions, truth)

    def state(self) -> dict[str, np.ndarray]:
        """What has been counted, as arrays; what has been written is not part of it."""
        return self.evaluator.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`."""
        self.evaluator.load_state(state)

    def merge(self, other: WrittenPredictions) -> None:
        """Adds the images that another evaluator has scored; it writes its own files."""
        self.evaluator.merge(other.evaluator)

    def result(self) -> dict[str, float]:
        """Scores of all images so far."""
        return self.evaluator.result()

    def save(self) -> Path:
        """Writes what covers all images, and returns the JSON, or the folder of the PNGs."""
        return self._files.save()


def writing(evaluators: Sequence[Evaluator], folder: str | os.PathLike) -> list[Evaluator]:
    """The evaluators, each that has files writing them too.

    Raises:
        ValueError: If none of them has files.
    """
    if not any(evaluator.name in TASKS for evaluator in evaluators):
        received = ", ".join(evaluator.name for evaluator in evaluators)
        raise ValueError(f"To write predictions, measure one of {', '.join(TASKS)}. Received: {received}")
    return [WrittenPredictions(one, folder) if one.name in TASKS else one for one in evaluators]


def _as_result(task: str, predictions: Mapping[str, np.ndarray]) -> types.SimpleNamespace:
    """What `PredictionFiles.add` reads of a `SegmentationResult`."""
    if task == "semantic":
        return types.SimpleNamespace(segmentation=predictions["class_map"])
    rows = np.flatnonzero(predictions["valid"])
    if task == "panoptic":
        columns = (predictions["segment_ids"][rows].tolist(), predictions["category_ids"][rows].tolist())
        segments = [{"id": segment_id, "category_id": c} for segment_id, c in zip(*columns, strict=True)]
        return types.SimpleNamespace(segmentation=predictions["panoptic_map"], segments=segments)
    columns = (predictions["category_ids"][rows].tolist(), predictions["scores"][rows].tolist())
    segments = [{"category_id": category_id, "score": score} for category_id, score in zip(*columns, strict=True)]
    return types.SimpleNamespace(segments=segments, masks=predictions["masks"][rows])
