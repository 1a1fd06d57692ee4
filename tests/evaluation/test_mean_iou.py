"""Semantic scores against hand numbers and a per-pixel loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.structures import DatasetInfo

IGNORE = 255


def scores_of(prediction, truth, **arguments):
    metric = MeanIoU(**{"num_classes": 3, **arguments})
    metric.update(np.array(prediction, np.uint8), np.array(truth, np.uint8))
    return metric.result()


def test_hand_numbers():
    # class 0: 3 true, 2 found; class 1: 1 true, found, 1 more predicted; class 2: nowhere.
    scores = scores_of([[0, 0], [1, 1]], [[0, 0], [0, 1]])
    assert scores["IoU/class 0"] == pytest.approx(2 / 3)
    assert scores["IoU/class 1"] == pytest.approx(1 / 2)
    assert math.isnan(scores["IoU/class 2"]) and math.isnan(scores["ACC/class 2"])
    assert scores["mIoU"] == scores["mIoU_truth_classes"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["fwIoU"] == pytest.approx(0.75 * 2 / 3 + 0.25 / 2)
    assert scores["mACC"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["pACC"] == pytest.approx(3 / 4)


def test_a_class_in_the_prediction_only_tells_the_two_definitions_apart():
    scores = scores_of([[0, 0], [0, 2]], [[0, 0], [0, 0]])
    assert scores["mIoU_truth_classes"] == pytest.approx(3 / 4)
    assert scores["mIoU"] == pytest.approx(3 / 8)
    assert scores["IoU/class 2"] == 0.0 and math.isnan(scores["ACC/class 2"])


def test_a_class_in_the_truth_only_counts_in_both_definitions():
    scores = scores_of([[0, 0]], [[0, 1]])
    assert scores["mIoU"] == scores["mIoU_truth_classes"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores["ACC/class 1"] == 0.0


def test_predictions_on_ignored_pixels_are_free():
    scores = scores_of([[0, 2]], [[0, IGNORE]])
    assert scores["mIoU"] == scores["pACC"] == 1.0
    assert math.isnan(scores["IoU/class 2"])


def test_predicted_void_is_wrong_and_charged_to_no_other_class():
    for void in (3, 255):
        scores = scores_of([[0, void]], [[0, 0]])
        assert scores["mIoU"] == scores["mIoU_truth_classes"] == scores["pACC"] == pytest.approx(1 / 2)
    metric = MeanIoU(2)
    metric.update(np.array([[-1, 1]], np.int32), np.array([[0, 1]]))
    assert metric.confusion.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_void_to_class_charges_it_to_that_class():
    scores = scores_of([[0, 255]], [[0, 0]], void_to_class=1)
    assert scores["mIoU"] == pytest.approx(1 / 4)
    assert scores["IoU/class 1"] == 0.0


def test_nothing_labelled_is_undefined():
    for truth in ([[IGNORE, IGNORE]], np.zeros((0, 2))):
        scores = scores_of(np.zeros(np.shape(truth)), truth)
        assert all(math.isnan(value) for value in scores.values())
    assert math.isnan(MeanIoU(2).result()["mIoU"])


@pytest.mark.parametrize(
    ("num_classes", "dtype", "ignore"), [(5, np.uint8, 255), (300, np.uint16, 65535), (4, np.int32, -1)]
)
def test_equals_a_loop_over_pixels(rng, num_classes, dtype, ignore):
    metric = MeanIoU(num_classes, ignore_value=ignore)
    expected = np.zeros((num_classes, num_classes + 1), np.int64)
    for _ in range(3):
        truth = rng.integers(0, num_classes, (11, 13)).astype(dtype)
        truth[rng.random(truth.shape) < 0.2] = ignore
        prediction = rng.integers(0, num_classes + 2, (11, 13)).astype(dtype)
        metric.update(prediction, truth)
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != ignore:
                expected[t, min(p, num_classes)] += 1
    np.testing.assert_array_equal(metric.confusion, expected)


def test_merged_parts_equal_one_pass(rng):
    maps = rng.integers(0, 3, (4, 2, 6, 7)).astype(np.uint8)
    whole, parts = MeanIoU(3), [MeanIoU(3), MeanIoU(3)]
    for index, (prediction, truth) in enumerate(maps):
        whole.update(prediction, truth)
        parts[index % 2].update(prediction, truth)
    assert parts[0].merge(parts[1]).result() == whole.result()
    whole.reset()
    assert whole.confusion.sum() == 0


def test_strided_maps_and_class_names():
    maps = np.array([[0, 9, 1], [1, 9, 0]], np.uint8)[:, ::2]
    metric = MeanIoU.from_info(DatasetInfo("two", ("road", "sky")))
    metric.update(maps, maps)
    assert metric.result()["IoU/road"] == metric.result()["ACC/sky"] == 1.0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: MeanIoU(0), "`num_classes` must be a positive integer. Received: num_classes=0"),
        (lambda: MeanIoU(847), r"one of the class ids 0..846; use 65535 .* Received: ignore_value=255"),
        (lambda: MeanIoU(3, void_to_class=3), "class id 0..2. Received: void_to_class=3"),
        (lambda: MeanIoU(2, class_names=["a"]), "2 different names, one per class. Received: 1 names, 1 of"),
        (lambda: MeanIoU(2).merge(MeanIoU(3)), "Received: 2 and 3 classes"),
        (
            lambda: MeanIoU(2).update(np.zeros((2, 2), int), np.zeros((2, 3), int)),
            r"Received: prediction \(2, 2\), truth \(2, 3\)",
        ),
        (lambda: MeanIoU(2).update(np.zeros((1, 1)), np.zeros((1, 1), int)), "integers .* dtype float64"),
        (lambda: MeanIoU(2).update(np.array([[0]]), np.array([[7]])), r"0..1 or `ignore_value` 255. Received: \[7\]"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()
