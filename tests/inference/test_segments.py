"""Rows of segment tables."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.inference.segments import instance_segments, panoptic_segments, semantic_segments
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("sky", "car", "dog"), thing_ids=(1, 2))


def test_semantic_rows_have_the_class_as_id_and_void_has_none():
    class_map = np.array([[0, 0, 2], [-1, 0, 2]], np.int32)
    confidence = np.array([[0.5, 0.7, 0.9], [0.0, 0.9, 0.7]], np.float32)
    rows = semantic_segments(class_map, confidence, INFO)
    assert [(r["id"], r["category_id"], r["label"], r["is_thing"], r["area"], r["box"]) for r in rows] == [
        (0, 0, "sky", False, 3, (0, 0, 2, 2)),
        (2, 2, "dog", True, 2, (2, 0, 3, 2)),
    ]
    assert [row["score"] for row in rows] == pytest.approx([0.7, 0.8])
    assert [row["score"] for row in semantic_segments(class_map, None, INFO)] == [1.0, 1.0]
    assert semantic_segments(np.full((2, 2), -1), None, INFO) == []


def test_panoptic_rows_are_the_valid_ones():
    segmentation = np.array([[1, 1, 0], [2, 2, 2]], np.int32)
    table = {
        "valid": np.array([True, False, True]),
        "segment_ids": np.array([1, 0, 2]),
        "category_ids": np.array([1, 0, 0]),
        "scores": np.array([0.9, 0.0, 0.8]),
        "areas": np.array([2, 0, 3]),
    }
    rows = panoptic_segments(segmentation, table, INFO)
    assert rows == [
        {"id": 1, "category_id": 1, "label": "car", "is_thing": True, "score": 0.9, "area": 2, "box": (0, 0, 2, 1)},
        {"id": 2, "category_id": 0, "label": "sky", "is_thing": False, "score": 0.8, "area": 3, "box": (0, 1, 3, 2)},
    ]


def test_the_better_instance_shows_where_two_overlap():
    masks = np.zeros((2, 2, 3), bool)
    masks[0, :, :2] = masks[1, 0, :] = True
    table = {
        "category_ids": np.array([2, 1]),
        "scores": np.array([0.9, 0.6]),
        "areas": np.array([4, 3]),
        "boxes": np.array([[0, 0, 2, 2], [0, 0, 3, 1]]),
    }
    segmentation, rows = instance_segments(masks, table, INFO)
    assert segmentation.tolist() == [[1, 1, 2], [1, 1, 0]]
    assert [(row["id"], row["label"], row["area"], row["box"]) for row in rows] == [
        (1, "dog", 4, (0, 0, 2, 2)),
        (2, "car", 3, (0, 0, 3, 1)),
    ]


def test_no_instance_gives_an_empty_map():
    empty = {key: np.zeros((0,)) for key in ("category_ids", "scores", "areas")}
    segmentation, rows = instance_segments(np.zeros((0, 2, 3), bool), {**empty, "boxes": np.zeros((0, 4))}, INFO)
    assert rows == [] and segmentation.shape == (2, 3) and not segmentation.any()
