"""The score of every single image, beside the scores of all."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.evaluation.evaluator import Evaluator, ImageOutputs, Truth
from kmaskformer.evaluation.score_tables import write_rows
from kmaskformer.structures import DatasetInfo

_ARRAYS = ("image_ids", "image_scores")


class ScoredImages:
    """An evaluator that also keeps each image's own main score, the first that the evaluator names.

    Args:
        evaluator: Any evaluator that has seen no image.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.name = evaluator.name
        self._single = copy.copy(evaluator)
        self._ids: list[str] = []
        self._scores: list[float] = []

    def bind(self, info: DatasetInfo) -> None:
        """Learns the label space and forgets all images."""
        self.evaluator.bind(info)
        self._single.bind(info)
        self._ids, self._scores = [], []

    def reset(self) -> None:
        """Forgets all images."""
        self.evaluator.reset()
        self._ids, self._scores = [], []

    def predict(self, outputs: ImageOutputs) -> dict[str, Any]:
        """The evaluator's predictions."""
        return self.evaluator.predict(outputs)

    def update(self, predictions: Mapping[str, np.ndarray], truth: Truth) -> None:
        """Counts one image."""
        self.evaluator.update(predictions, truth)
        self._single.reset()
        self._single.update(predictions, truth)
        self._ids.append(truth.image_id)
        self._scores.append(next(iter(self._single.result().values())))

    def state(self) -> dict[str, np.ndarray]:
        """What has been counted, as arrays, the single images among them."""
        images = dict(zip(_ARRAYS, (np.array(self._ids, str), np.array(self._scores, np.float64)), strict=True))
        return {**self.evaluator.state(), **images}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces what has been counted by a `state`; that of the bare evaluator will do, without single images."""
        self.evaluator.load_state({key: value for key, value in state.items() if key not in _ARRAYS})
        self._ids, self._scores = (np.asarray(state.get(key, [])).tolist() for key in _ARRAYS)

    def merge(self, other: ScoredImages) -> None:
        """Adds the images that another evaluator of this kind has seen."""
        self.evaluator.merge(other.evaluator)
        self._ids += other._ids
        self._scores += other._scores

    def result(self) -> dict[str, float]:
        """Scores of all images so far."""
        return self.evaluator.result()

    @property
    def score_name(self) -> str:
        """What single images are measured by."""
        return next(iter(self.evaluator.result()))

    def order(self) -> list[str]:
        """The images in the order in which they came."""
        return list(self._ids)

    def images(self) -> dict[str, float]:
        """The score of each image by its id, the best first; those that have none, without a labelled pixel, last."""
        scores = dict(zip(self._ids, self._scores, strict=True))
        return dict(sorted(scores.items(), key=lambda one: (math.isnan(one[1]), -one[1])))

    def write(self, path: str | Path) -> None:
        """Writes `images` as a CSV: `image_id` and the score, empty where there is none."""
        write_rows(path, [("image_id", self.score_name), *self.images().items()])
