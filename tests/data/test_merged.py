"""One segment per class, and the same class at every pixel as before."""

from __future__ import annotations

import numpy as np

from kmaskformer.build_data import build_reader
from kmaskformer.config import config_from_dict
from kmaskformer.data.merged import MergedSegments
from kmaskformer.structures import DatasetInfo


class Reader:
    info = DatasetInfo("test", ("a", "b", "c"))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {
            "image": np.zeros((1, 5, 3), np.uint8),
            "segment_map": np.array([[0, 1, 2, -1, 3]], np.int32),
            "labels": np.array([2, 0, 2, 0], np.int32),
            "is_crowd": np.array([False, False, False, True]),
            "image_id": "x",
        }


def test_segments_of_a_class_become_one():
    sample = MergedSegments(Reader())[0]
    assert sample["labels"].tolist() == [0, 2] and sample["labels"].dtype == np.int32
    assert sample["segment_map"].tolist() == [[1, 0, 1, -1, 0]] and sample["segment_map"].dtype == np.int32
    assert sample["is_crowd"].tolist() == [False, False]


def test_the_configuration_asks_for_it():
    data = {"generated_classes": 20, "image_size": [64, 64], "val": {"count": 20, "seed": 3}}
    plain = build_reader(config_from_dict({"data": data}).data, "val")
    merged = build_reader(config_from_dict({"data": {**data, "merge_instances": True}}).data, "val")
    assert len(merged) == 20 and merged.info.num_classes == 20
    for before, after in zip((plain[i] for i in range(20)), (merged[i] for i in range(20)), strict=True):
        assert len(set(after["labels"])) == len(after["labels"])
        classes = before["labels"][before["segment_map"]]
        np.testing.assert_array_equal(after["labels"][after["segment_map"]], classes)


def test_where_segments_overlap_the_smallest_decides():
    """Two cars of class 1 share a region with a wheel of class 0; each pixel ends in one class."""

    class Overlapping(Reader):
        has_overlaps = True

        def __getitem__(self, index):
            membership = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
            return super().__getitem__(index) | {
                "segment_map": np.array([[0, 1, 2, -1, 0]], np.int32),
                "labels": np.array([1, 0, 1], np.int32),
                "is_crowd": np.zeros(3, bool),
                "membership": membership,
            }

    merged = MergedSegments(Overlapping())
    assert not merged.has_overlaps and "membership" not in merged[0]
    assert merged[0]["labels"].tolist() == [0, 1]
    assert merged[0]["segment_map"].tolist() == [[1, 0, 1, -1, 1]]
