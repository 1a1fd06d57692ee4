"""From a sample to inputs and targets."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kmaskformer.data import targets

SAMPLE = {
    "image": tf.zeros((3, 4, 3), tf.uint8),
    # Areas: segment 0 five, 1 (crowd) two, 2 none, 3 three, 4 one; one void pixel.
    "segment_map": tf.constant([[0, 0, 0, -1], [0, 0, 1, 1], [3, 3, 3, 4]]),
    "labels": tf.constant([7, 8, 9, 5, 6]),
    "is_crowd": tf.constant([False, True, False, False, False]),
    "image_id": tf.constant("x"),
}


def test_areas():
    np.testing.assert_array_equal(targets.segment_areas(SAMPLE), [5, 2, 0, 3, 1])
    empty = SAMPLE | {"segment_map": tf.fill((3, 4), -1), "labels": tf.zeros(0, tf.int32)}
    assert targets.segment_areas(empty).shape == (0,)


def test_training_drops_crowds_and_empty_segments():
    inputs, truth = targets.training_element(SAMPLE)
    assert set(inputs) == {"images", "image_sizes"} and set(truth) == {"segment_map", "labels", "valid"}
    np.testing.assert_array_equal(inputs["image_sizes"], [3, 4])
    np.testing.assert_array_equal(truth["segment_map"], [[0, 0, 0, -1], [0, 0, -1, -1], [1, 1, 1, 2]])
    np.testing.assert_array_equal(truth["labels"], [7, 5, 6])
    np.testing.assert_array_equal(truth["valid"], [True] * 3)
    assert truth["segment_map"].dtype == tf.int32 and truth["labels"].dtype == tf.int32


def test_training_keeps_empty_segments_if_asked():
    _, truth = targets.training_element(SAMPLE, min_area=0)
    np.testing.assert_array_equal(truth["labels"], [7, 9, 5, 6])
    np.testing.assert_array_equal(truth["segment_map"], [[0, 0, 0, -1], [0, 0, -1, -1], [2, 2, 2, 3]])


def test_training_drops_small_segments():
    _, truth = targets.training_element(SAMPLE, min_area=3)
    np.testing.assert_array_equal(truth["labels"], [7, 5])
    np.testing.assert_array_equal(truth["segment_map"][2], [1, 1, 1, -1])


def test_training_keeps_the_largest():
    _, truth = targets.training_element(SAMPLE, max_segments=2)
    np.testing.assert_array_equal(truth["labels"], [7, 5])
    np.testing.assert_array_equal(truth["segment_map"], [[0, 0, 0, -1], [0, 0, -1, -1], [1, 1, 1, -1]])
    _, truth = targets.training_element(SAMPLE, max_segments=1)
    np.testing.assert_array_equal(truth["labels"], [7])
    _, truth = targets.training_element(SAMPLE, max_segments=9)
    assert len(truth["labels"]) == 3


def test_training_without_any_segment():
    everything_crowd = SAMPLE | {"is_crowd": tf.ones(5, tf.bool)}
    _, truth = targets.training_element(everything_crowd, max_segments=4)
    assert truth["labels"].shape == (0,) and (truth["segment_map"].numpy() == -1).all()


def test_evaluation_keeps_the_whole_truth_at_its_size():
    inputs, truth = targets.evaluation_element(SAMPLE, shortest_edge=6, longest_edge=7)
    assert inputs["images"].shape == (5, 7, 3)
    np.testing.assert_array_equal(inputs["image_sizes"], [5, 7])
    np.testing.assert_array_equal(truth["original_size"], [3, 4])
    for key in ("segment_map", "labels", "is_crowd", "image_id"):
        assert truth[key] is SAMPLE[key]
    assert truth["valid"].numpy().all()
    inputs, _ = targets.evaluation_element(SAMPLE)
    assert inputs["images"].shape == (3, 4, 3)
