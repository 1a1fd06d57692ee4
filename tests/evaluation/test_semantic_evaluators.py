"""Boundary IoU, one segment a class, and the Cityscapes benchmark's scores, by hand and by plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kmaskformer.evaluation.boundary_iou import BoundaryIoU, boundary, boundary_width
from kmaskformer.evaluation.cityscapes_iou import AVERAGE_SIZES, CityscapesIoU
from kmaskformer.evaluation.evaluator import Truth
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality
from kmaskformer.evaluation.semantic_evaluators import (
    CityscapesEvaluator,
    PanopticStuffEvaluator,
    SemanticBoundaryEvaluator,
)
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky", "road"), thing_ids=(0,))


def truth_of(segment_map, labels, crowd=None):
    labels = np.array(labels, np.int32)
    crowd = np.zeros(len(labels), bool) if crowd is None else np.array(crowd)
    return Truth(np.array(segment_map, np.int32), labels, crowd, np.ones(len(labels), bool), "street")


def test_the_boundary_is_what_erosion_takes_away():
    region = np.zeros((9, 12), np.int32)
    region[2:9, 3:12] = 1
    expected = region == 1
    expected[3:8, 4:11] = False  # one pixel from the region's border and from the image's edge
    np.testing.assert_array_equal(boundary(region, 1) & (region == 1), expected)
    assert boundary_width((480, 640)) == 16 and boundary_width((8, 8)) == 1


def plain_boundary_iou(pairs, num_classes, ignore, ratio):
    """Each class's mask on its own, eroded pixel by pixel."""
    sums = np.zeros((num_classes, 2))
    for predicted, true in pairs:
        width = boundary_width(true.shape, ratio)
        for category_id in range(num_classes):
            borders = []
            for one in (predicted, true):
                one = np.where(true == ignore, ignore, one)
                padded = np.pad(one == category_id, width)
                windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1,) * 2)
                borders.append((one == category_id) & ~windows.all(axis=(2, 3)) & (true != ignore))
            sums[category_id] += (borders[0] & borders[1]).sum(), (borders[0] | borders[1]).sum()
    return [hit / union if union else math.nan for hit, union in sums]


def test_boundary_iou_equals_a_plain_loop(rng):
    metric, pairs = BoundaryIoU(4, 255, dilation_ratio=0.05), []
    for size in ((40, 30), (25, 33), (8, 9)):
        coarse = rng.integers(0, 3, (2, 3, 3))
        predicted, true = (np.kron(one, np.ones((14, 11), int))[: size[0], : size[1]] for one in coarse)
        true[:4, :5], predicted[6:8, :3] = 255, -1
        pairs.append((predicted, true))
        metric.update(predicted, true)
    expected = plain_boundary_iou(pairs, 4, 255, 0.05)
    scores = metric.result()
    assert [scores[f"IoU/class {i}"] for i in range(4)] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert scores["mIoU"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_a_shift_costs_borders_more_than_regions():
    true = np.zeros((100, 100), np.int32)
    true[:, 50:] = 1
    predicted = np.roll(true, 2, axis=1)
    predicted[:, :2] = 0
    region, border = MeanIoU(2), BoundaryIoU(2)
    region.update(predicted, true)
    border.update(predicted, true)
    assert region.result()["mIoU"] == pytest.approx((50 / 52 + 48 / 50) / 2)
    assert border.result()["mIoU"] < 0.9


def test_a_class_in_the_predicted_borders_only_tells_the_means_apart():
    metric = BoundaryIoU(3)
    metric.update(np.array([[0, 0], [2, 2]]), np.zeros((2, 2), int))
    assert metric.result() == pytest.approx(
        {"mIoU": 0.25, "mIoU_truth_classes": 0.5, "IoU/class 0": 0.5, "IoU/class 1": math.nan, "IoU/class 2": 0.0},
        nan_ok=True,
    )


def test_a_class_may_have_any_name():
    metric = BoundaryIoU(2, class_names=("inside", "class 2"))
    metric.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    expected = {"mIoU": 1.0, "mIoU_truth_classes": 1.0, "IoU/inside": 1.0, "IoU/class 2": math.nan}
    assert metric.result() == pytest.approx(expected, nan_ok=True)


def test_one_segment_a_class():
    evaluator = PanopticStuffEvaluator()
    evaluator.bind(INFO)
    truth = truth_of([[0, 1, 2, 2], [0, 1, 2, -1]], [0, 0, 1])  # two persons, sky, one pixel void
    evaluator.update({"class_map": np.array([[0, 0, 1, 2], [0, 0, 1, 2]])}, truth)
    scores = evaluator.result()
    # Persons are one segment; sky is hit with IoU 2/3; half of the predicted road lies on void, which is no excuse.
    assert scores["panoptic_stuff/PQ/person"] == 1.0
    assert scores["panoptic_stuff/PQ/sky"] == pytest.approx(2 / 3)
    assert scores["panoptic_stuff/FP/road"] == 1
    assert scores["panoptic_stuff/PQ"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["panoptic_stuff/PQ_stuff"] == pytest.approx(1 / 3)


def cityscapes(predicted, segment_map, labels, crowd, names=("road", "person", "rider")):
    metric = CityscapesIoU(names)
    metric.update(np.array(predicted), np.array(segment_map), np.array(labels), np.array(crowd))
    return metric


def test_small_instances_weigh_as_much_as_large_ones():
    # Segments: road, a person of 4 pixels of which 3 are found, one of 1 pixel found as a rider, a group.
    segment_map = [[1, 1, 1, 1, 2, 3, 0, 0, -1]]
    predicted = [[1, 1, 1, 0, 2, 0, 0, 1, 1]]
    scores = cityscapes(predicted, segment_map, [0, 1, 1, 1], [0, 0, 0, 1]).result()
    average = AVERAGE_SIZES["person"]
    assert scores["IoU/person"] == pytest.approx(3 / 7)  # 6 true, 4 predicted on labelled pixels, 3 both
    assert scores["iIoU/person"] == pytest.approx(0.75 * average / (2 * average + 1))
    # For the category the rider is a hit.
    assert scores["IoU_categories/human"] == pytest.approx(4 / 7)
    assert scores["iIoU_categories/human"] == pytest.approx(1.75 * average / (2 * average + 1))
    assert scores["IoU_categories"] == pytest.approx((4 / 7 + 1 / 4) / 2)
    assert scores["iIoU"] == pytest.approx((scores["iIoU/person"] + scores["iIoU/rider"]) / 2)
    assert scores["iIoU/rider"] == 0.0 and "iIoU/road" not in scores


@pytest.mark.parametrize("evaluator_class", [SemanticBoundaryEvaluator, PanopticStuffEvaluator, CityscapesEvaluator])
def test_parts_merge_and_states_resume(evaluator_class, rng):
    def fed(*images):
        evaluator = evaluator_class()
        evaluator.bind(INFO)
        for predicted, segment_map in images:
            evaluator.update({"class_map": predicted}, truth_of(segment_map, [0, 0, 1, 2], [0, 1, 0, 0]))
        return evaluator

    images = [(rng.integers(0, 3, (9, 12)), rng.integers(-1, 4, (9, 12))) for _ in range(4)]
    whole, first, second = fed(*images), fed(*images[:1]), fed(*images[1:])
    resumed = fed()
    resumed.load_state(first.state())
    resumed.merge(second)
    assert resumed.result() == pytest.approx(whole.result(), nan_ok=True, abs=1e-12)
    assert all(key.startswith(f"{evaluator_class.name}/") for key in whole.result())


@pytest.mark.parametrize("metric", [MeanIoU(3), PanopticQuality(3), BoundaryIoU(3), CityscapesIoU(("car", "sky", "a"))])
def test_states_of_other_classes_are_refused(metric):
    with pytest.raises(ValueError, match="A state must be that of a metric of the same kind and classes"):
        metric.load_state(MeanIoU(7).state())
    metric.load_state(metric.state())


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: BoundaryIoU(2, dilation_ratio=0), "`dilation_ratio` must lie between 0 and 1. Received: dila.*=0"),
        (lambda: BoundaryIoU(2, ignore_value=1), "`ignore_value` must not be one of the class ids"),
        (lambda: BoundaryIoU(2).update(np.zeros((2, 2), int), np.full((2, 2), 3)), r"Truth must hold class ids 0\.\.1"),
        (lambda: CityscapesIoU(("a", "b")), r"`average_sizes` must name classes of the dataset.*\('a', 'b'\)"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()
