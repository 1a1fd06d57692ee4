"""Small cases whose official scores are in `official_scores.json`; `official_tools.py` computed them.

NumPy only: the official tools run in an environment of their own. `RandomState`'s numbers never change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VOID = -1
STUFF_CLASSES = 7
STUFF_THINGS = (0, 3)
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The benchmark's classes in their usual order, with their ids in its files."""
FIRST_THING = 11


class Street(NamedTuple):
    """`(height, width)` class ids, segments (rows of the table, -1 where unlabelled), and the table's columns."""

    predicted: np.ndarray
    segment_map: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray


def semantic_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true maps of `STUFF_CLASSES` classes with void; class 5 is never true, class 6 never predicted."""
    random = np.random.RandomState(7)
    pairs = []
    for _ in range(5):
        true = _blocks(random.randint(0, STUFF_CLASSES, (4, 5)), 9)
        true[true == 5] = VOID
        predicted = np.roll(true, random.randint(0, 3, 2), (0, 1))
        predicted = np.where(predicted == VOID, _blocks(random.randint(0, 6, (4, 5)), 9), predicted)
        noise = random.rand(*true.shape) < 0.06
        predicted = np.where(noise, random.randint(0, 6, true.shape), predicted)
        predicted[predicted == 6] = 2
        pairs.append((predicted, true))
    return pairs


def streets() -> list[Street]:
    """Segments of all classes of Cityscapes, several instances of each thing class among them, and groups."""
    random = np.random.RandomState(11)
    scenes = []
    for _ in range(4):
        labels = np.concatenate([np.arange(FIRST_THING), random.randint(FIRST_THING, len(CITYSCAPES), 14)])
        is_crowd = (labels >= FIRST_THING) & (random.rand(labels.size) < 0.25)
        segment_map = _blocks(random.randint(-1, labels.size, (6, 9)), 7)
        predicted = np.append(labels, 0)[np.roll(segment_map, random.randint(0, 4, 2), (0, 1))]
        noise = random.rand(*predicted.shape) < 0.2
        predicted = np.where(noise, random.randint(0, len(CITYSCAPES), predicted.shape), predicted)
        scenes.append(Street(predicted, segment_map, labels, is_crowd))
    return scenes


def _blocks(coarse: np.ndarray, size: int) -> np.ndarray:
    return np.kron(coarse, np.ones((size, size), np.int64))
