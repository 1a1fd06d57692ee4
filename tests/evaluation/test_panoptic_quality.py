"""Panoptic quality against hand numbers and a dict-by-dict reading of the published rules."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from kmaskformer.evaluation.panoptic_quality import PanopticQuality, SegmentTable
from kmaskformer.structures import DatasetInfo


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row: `(id, length)` after `(id, length)`."""
    return np.concatenate([np.full(length, value, np.int32) for value, length in runs])[None]


def segment(segment_id: int, category_id: int, **more: int) -> dict[str, int]:
    return {"id": segment_id, "category_id": category_id, **more}


def counts_of(predicted_map, predicted, true_map, true, num_classes=2):
    metric = PanopticQuality(num_classes, thing_ids=[0])
    metric.update(predicted_map, predicted, true_map, true)
    counts = (metric.true_positives, metric.false_positives, metric.false_negatives)
    return [tuple(int(count[i]) for count in counts) for i in range(num_classes)], metric


def test_hand_numbers():
    # Segment 7 (thing): 8 pixels, predicted 8, 6 in common: IoU 6/10. Segment 3 (stuff): missed; segment 2: invented.
    predicted_map, true_map = row((1, 8), (2, 12)), row((0, 2), (7, 8), (3, 10))
    counts, metric = counts_of(predicted_map, [segment(1, 0), segment(2, 0)], true_map, [segment(7, 0), segment(3, 1)])
    assert counts == [(1, 1, 0), (0, 0, 1)]
    # Two of the predicted pixels lie on void and leave the union: 6 / (8 + 8 - 6 - 2).
    scores = metric.result()
    assert metric.iou_sums.tolist() == [6 / 8, 0.0]
    assert scores["PQ/class 0"] == scores["PQ_things"] == pytest.approx(0.75 / 1.5)
    assert scores["SQ/class 0"] == pytest.approx(0.75) and scores["RQ/class 0"] == pytest.approx(1 / 1.5)
    assert scores["PQ_stuff"] == scores["SQ/class 1"] == scores["RQ_stuff"] == 0.0
    assert scores["PQ"] == pytest.approx(0.25)
    assert (scores["TP/class 0"], scores["FP/class 0"], scores["FN/class 1"]) == (1, 1, 1)


def test_an_iou_of_one_half_is_no_match():
    counts, _ = counts_of(
        row((1, 3), (0, 1)), [segment(1, 0)], row((0, 0), (5, 2), (6, 2)), [segment(5, 1), segment(6, 0)]
    )
    assert counts[0] == (0, 1, 1)
    # 2 of 4 pixels: exactly 0.5.
    counts, _ = counts_of(row((1, 2), (2, 2)), [segment(1, 0), segment(2, 1)], row((5, 4)), [segment(5, 0)])
    assert counts == [(0, 1, 1), (0, 1, 0)]


def test_classes_must_agree():
    counts, _ = counts_of(row((1, 4)), [segment(1, 1)], row((5, 4)), [segment(5, 0)])
    assert counts == [(0, 0, 1), (0, 1, 0)]


@pytest.mark.parametrize(("on_void", "false_positives"), [(5, 1), (6, 0)])
def test_a_prediction_more_than_half_on_void_is_excused(on_void, false_positives):
    true_map = row((0, on_void), (5, 20 - on_void))
    predicted_map = row((1, 10), (0, 10))
    counts, _ = counts_of(predicted_map, [segment(1, 0)], true_map, [segment(5, 1)])
    assert counts == [(0, false_positives, 0), (0, 0, 1)]


@pytest.mark.parametrize(("category_id", "false_positives"), [(0, 0), (1, 1)])
def test_crowd_excuses_predictions_of_its_class_and_is_never_missed(category_id, false_positives):
    true_map = row((5, 6), (6, 14))
    true = [segment(5, 0, iscrowd=1), segment(6, 1)]
    predicted = [segment(1, category_id), segment(2, 1)]
    counts, _ = counts_of(row((1, 7), (2, 13)), predicted, true_map, true)
    assert counts[0] == (0, 0, 0)
    assert counts[1] == (1, false_positives, 0)


def test_an_area_smaller_than_the_segment_is_refused():
    true_map, predicted = row((5, 6), (6, 4)), [segment(1, 0), segment(2, 1)]
    for area in (0, 5):
        with pytest.raises(
            ValueError, match=rf"must not be smaller .*area {area} of id 5, which has 6 pixels, and 0 more"
        ):
            counts_of(row((1, 6), (2, 4)), predicted, true_map, [segment(5, 0, area=area), segment(6, 1)])
    # A larger one is that of a segment which void hides in part; a crowd's enters no score.
    counts, metric = counts_of(
        row((1, 6), (2, 4)), predicted, true_map, [segment(5, 0, area=0, iscrowd=1), segment(6, 1, area=5)]
    )
    assert counts == [(0, 0, 0), (1, 0, 0)] and metric.iou_sums[1] == 4 / 5


def test_void_and_crowd_add_up():
    true_map = row((0, 3), (5, 3), (6, 14))
    counts, _ = counts_of(row((1, 10), (0, 10)), [segment(1, 0)], true_map, [segment(5, 0, iscrowd=1), segment(6, 1)])
    assert counts[0] == (0, 0, 0)


def test_of_several_crowds_of_a_class_the_last_counts_as_in_the_official_tool():
    true_map = row((5, 4), (6, 4), (7, 2))
    true = [segment(5, 0, iscrowd=1), segment(6, 0, iscrowd=1), segment(7, 1)]
    counts, _ = counts_of(row((1, 10)), [segment(1, 0)], true_map, true)
    assert counts[0] == (0, 1, 0)


def test_a_perfectly_covered_crowd_is_no_match():
    counts, _ = counts_of(row((1, 4)), [segment(1, 0)], row((5, 4)), [segment(5, 0, iscrowd=1)])
    assert counts[0] == (0, 0, 0)


def test_empty_truth_and_empty_prediction():
    counts, metric = counts_of(row((0, 4)), [], row((5, 4)), [segment(5, 0)])
    assert counts[0] == (0, 0, 1) and metric.result()["PQ"] == 0.0
    counts, metric = counts_of(row((1, 4)), [segment(1, 0)], row((0, 4)), [])
    # All of it lies on void.
    assert counts[0] == (0, 0, 0) and math.isnan(metric.result()["PQ"])
    counts, _ = counts_of(row((0, 4)), [], row((0, 4)), [])
    assert counts == [(0, 0, 0)] * 2


def test_absent_classes_are_left_out_of_the_means():
    _, metric = counts_of(row((1, 4)), [segment(1, 1)], row((5, 4)), [segment(5, 1)], num_classes=3)
    scores = metric.result()
    assert scores["PQ"] == scores["PQ_stuff"] == 1.0
    assert math.isnan(scores["PQ_things"]) and math.isnan(scores["PQ/class 0"]) and math.isnan(scores["SQ/class 2"])


def test_a_true_segment_without_pixels_is_missed_and_a_stated_area_is_used():
    counts, _ = counts_of(row((0, 4)), [], row((0, 4)), [segment(5, 0)])
    assert counts[0] == (0, 0, 1)
    # 4 pixels in the map, but the file says 9: IoU 4 / 9.
    counts, _ = counts_of(row((1, 4)), [segment(1, 0)], row((5, 4)), [segment(5, 0, area=9)])
    assert counts[0] == (0, 1, 1)


def test_unlisted_true_pixels_are_not_void():
    counts, metric = counts_of(row((1, 10)), [segment(1, 0)], row((9, 4), (5, 6)), [segment(5, 0)])
    assert counts[0] == (1, 0, 0) and metric.iou_sums[0] == pytest.approx(6 / 10)


def by_the_rules(predicted_map, predicted, true_map, true, num_classes):
    """The rules read literally, one dict of pairs and one pass for each kind of count."""
    pairs = Counter(zip(true_map.ravel().tolist(), predicted_map.ravel().tolist(), strict=True))
    areas = Counter(predicted_map.ravel().tolist())
    true_areas = Counter(true_map.ravel().tolist())
    tp, fp, fn, iou_sums = ([0] * num_classes for _ in range(4))
    hit_true, hit_predicted = set(), set()
    for t in true:
        for p in predicted:
            meet = pairs.get((t["id"], p["id"]), 0)
            if not meet or t["iscrowd"] or t["category_id"] != p["category_id"]:
                continue
            iou = meet / (areas[p["id"]] + true_areas[t["id"]] - meet - pairs.get((0, p["id"]), 0))
            if iou > 0.5:
                tp[t["category_id"]] += 1
                iou_sums[t["category_id"]] += iou
                hit_true.add(t["id"])
                hit_predicted.add(p["id"])
    crowds = {t["category_id"]: t["id"] for t in true if t["iscrowd"]}
    for t in true:
        fn[t["category_id"]] += t["id"] not in hit_true and not t["iscrowd"]
    for p in predicted:
        if p["id"] in hit_predicted:
            continue
        excused = pairs.get((0, p["id"]), 0) + pairs.get((crowds.get(p["category_id"], -1), p["id"]), 0)
        fp[p["category_id"]] += not excused / areas[p["id"]] > 0.5
    return tp, fp, fn, iou_sums


def random_image(rng, num_classes):
    """Blocky truth, and a prediction that is the truth shifted with some segments relabelled."""
    true_map = np.kron(rng.integers(0, 9, (5, 6)), np.ones((6, 6), int)) * 65537
    predicted_map = np.roll(true_map, rng.integers(-2, 3, 2), axis=(0, 1)) // 65537 * 3
    true_ids, predicted_ids = np.unique(true_map[true_map > 0]), np.unique(predicted_map[predicted_map > 0])
    classes = rng.integers(0, num_classes, 9)
    true = [segment(int(i), int(classes[i // 65537]), iscrowd=int(rng.random() < 0.2)) for i in true_ids]
    rng.shuffle(true)
    flip = rng.random(9) < 0.3
    predicted = [segment(int(i), int((classes[i // 3] + flip[i // 3]) % num_classes)) for i in predicted_ids]
    return predicted_map.astype(np.int32), predicted, true_map, true


def test_equals_the_rules_on_random_images_and_merges(rng):
    num_classes = 4
    images = [random_image(rng, num_classes) for _ in range(60)]
    expected = np.sum([by_the_rules(*image, num_classes) for image in images], axis=0)
    whole, parts = PanopticQuality(num_classes), [PanopticQuality(num_classes) for _ in range(3)]
    for index, image in enumerate(images):
        whole.update(*image)
        parts[index % 3].update(*image)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for metric in (whole, merged):
        found = (metric.true_positives, metric.false_positives, metric.false_negatives)
        np.testing.assert_array_equal(found, expected[:3])
        np.testing.assert_allclose(metric.iou_sums, expected[3], atol=1e-12)
    assert expected[:3].min() > 0, "the images must exercise every count"
    whole.reset()
    assert math.isnan(whole.result()["PQ"])


def test_tables_of_columns_and_dataset_records():
    info = DatasetInfo("two", ("person", "sky"), thing_ids=(0,))
    metric = PanopticQuality.from_info(info)
    table = SegmentTable.from_columns([1, 2], [0, 1], [0, 0])
    metric.update(row((1, 3), (2, 3)), table, row((1, 3), (2, 3)), table)
    assert metric.result()["PQ/person"] == metric.result()["PQ_stuff"] == 1.0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: PanopticQuality(0), "positive integer. Received: num_classes=0"),
        (lambda: PanopticQuality(2, [2]), r"`thing_ids` must lie in 0..1. Received: \[2\]"),
        (lambda: PanopticQuality(2).merge(PanopticQuality(3)), "Received: 2 and 3 classes"),
        (lambda: counts_of(row((1, 1)), [], row((0, 1)), []), r"ids that the table lacks: \[1\]"),
        (lambda: counts_of(row((0, 1)), [segment(4, 0)], row((0, 1)), []), r"segments without any: ids=\[4\]"),
        (lambda: counts_of(row((0, 1)), [], row((1, 1)), [segment(1, 90)]), r"Class ids of true .* \[90\]"),
        (lambda: counts_of(row((0, 1)), [], row((0, 2)), []), r"same size.* prediction \(1, 1\), truth \(1, 2\)"),
        (lambda: SegmentTable.from_columns([1, 1], [0, 0]), r"must not repeat an id. Received: ids=\[1, 1\]"),
        (lambda: SegmentTable.from_columns([1, 2], [0]), "one length. Received: .*'category_ids': 1"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()


@pytest.mark.parametrize("value", ["0", 2, None])
def test_a_crowd_is_0_or_1(value):
    with pytest.raises(ValueError, match=f"`iscrowd` of a segment must be 0 or 1, or a bool. Received: {value!r}"):
        SegmentTable.of([{"id": 1, "category_id": 0, "iscrowd": value}])
