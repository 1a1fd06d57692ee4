"""Truth maps, and evaluators on outputs made by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmaskformer.evaluation.evaluator import (
    CombinedEvaluator,
    ImageOutputs,
    PanopticEvaluator,
    SemanticEvaluator,
    Truth,
)
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky", "sea"), thing_ids=(0,))
SIZE = (8, 8)


def outputs_of(columns, classes, strength=8.0, size=SIZE):
    """One query per range of columns of a 2x2-cell feature map, with its class; class 3 is no-object."""
    masks = np.full((1, len(columns), 2, 2), -strength, np.float32)
    for query, (left, right) in enumerate(columns):
        masks[0, query, :, left:right] = strength
    class_logits = np.full((1, len(classes), 4), -strength, np.float32)
    class_logits[0, np.arange(len(classes)), classes] = strength
    return ImageOutputs({"class_logits": class_logits, "mask_logits": masks}, SIZE, SIZE, size)


def truth_of(left=0, right=1, labels=(0, 1), is_crowd=(False, False), valid=(True, True)):
    segment_map = np.full(SIZE, left, np.int32)
    segment_map[:, 4:] = right
    return Truth(segment_map, np.array(labels, np.int32), np.array(is_crowd), np.array(valid), "street")


def score(evaluator, outputs, truth):
    evaluator.bind(INFO)
    predictions = {key: keras.ops.convert_to_numpy(value) for key, value in evaluator.predict(outputs).items()}
    evaluator.update(predictions, truth)
    return evaluator.result()


def test_truth_of_a_padded_batch():
    targets = {
        "segment_map": np.array([[[0, 1, -1], [1, -1, -1]], [[0, 0, 0], [0, 0, 0]]], np.int32),
        "labels": np.array([[2, 1, 0], [0, 0, 0]], np.int32),
        "valid": np.array([[True, True, False]] * 2),
        "is_crowd": np.array([[False, True, False]] * 2),
        "image_id": np.array([b"caf\xc3\xa9", b"b"], object),
        "original_size": np.array([[2, 2], [1, 3]], np.int32),
    }
    truth = Truth.of_batch(targets, 0)
    assert truth.image_id == "café"
    # The crowd segment keeps its class; void is -1.
    assert truth.semantic_map().tolist() == [[2, 1], [1, -1]]
    segment_ids, table = truth.panoptic()
    assert segment_ids.tolist() == [[1, 2], [2, 0]]
    assert (table.ids.tolist(), table.category_ids.tolist()) == ([1, 2], [2, 1])
    assert table.is_crowd.tolist() == [False, True]
    assert Truth.of_batch(targets, 1).segment_map.shape == (1, 3)


def test_pixels_of_a_padded_row_are_void():
    assert truth_of(valid=(True, False)).semantic_map()[0].tolist() == [0] * 4 + [-1] * 4


@pytest.mark.parametrize("inference", ["default", "general"])
@pytest.mark.parametrize("restore", ["scores", "masks"])
def test_semantic_evaluator(inference, restore):
    evaluator = SemanticEvaluator(inference, restore)
    scores = score(evaluator, outputs_of([(0, 1), (1, 2)], [0, 1]), truth_of())
    assert scores["semantic/mIoU"] == scores["semantic/pACC"] == scores["semantic/IoU/sky"] == 1.0
    scores = score(evaluator, outputs_of([(0, 1), (1, 2)], [0, 2]), truth_of())
    # Half right; sea is invented.
    assert scores["semantic/mIoU"] == pytest.approx(1 / 3)
    assert scores["semantic/mIoU_truth_classes"] == scores["semantic/pACC"] == pytest.approx(1 / 2)


def test_predictions_have_the_original_size():
    evaluator = CombinedEvaluator([SemanticEvaluator(), PanopticEvaluator()])
    evaluator.bind(INFO)
    predictions = evaluator.predict(outputs_of([(0, 1), (1, 2)], [0, 1], size=(10, 20)))
    assert predictions["semantic"]["class_map"].shape == predictions["panoptic"]["panoptic_map"].shape == (10, 20)
    assert (np.asarray(predictions["semantic"]["class_map"])[:, :10] == 0).all()


def test_per_pixel_logits():
    logits = np.zeros((1, 2, 2, 3), np.float32)
    logits[0, :, 0, 0] = logits[0, :, 1, 1] = 1.0
    outputs = ImageOutputs({"logits": logits}, SIZE, SIZE, SIZE)
    assert score(SemanticEvaluator("general"), outputs, truth_of())["semantic/mIoU"] == 1.0
    with pytest.raises(ValueError, match=r"`class_logits` among its outputs. Received: \['logits'\]"):
        score(PanopticEvaluator(), outputs, truth_of())


@pytest.mark.parametrize("inference", ["default", "general"])
def test_panoptic_evaluator(inference):
    evaluator = PanopticEvaluator(inference=inference)
    scores = score(evaluator, outputs_of([(0, 1), (1, 2)], [0, 1]), truth_of())
    assert scores["panoptic/PQ"] == scores["panoptic/PQ_things"] == scores["panoptic/PQ_stuff"] == 1.0
    # A crowd neither matches nor misses.
    scores = score(evaluator, outputs_of([(0, 1), (1, 2)], [0, 1]), truth_of(is_crowd=(True, False)))
    assert scores["panoptic/TP/person"] == scores["panoptic/FP/person"] == scores["panoptic/FN/person"] == 0


def test_thresholds_filter_default_inference_only():
    unsure = outputs_of([(0, 1), (1, 2)], [0, 1], strength=0.5)
    scores = score(PanopticEvaluator(object_mask_threshold=0.9), unsure, truth_of())
    assert scores["panoptic/PQ"] == 0.0 and scores["panoptic/FN/sky"] == 1
    scores = score(PanopticEvaluator(object_mask_threshold=0.9, inference="general"), unsure, truth_of())
    assert scores["panoptic/PQ"] == 1.0


def test_merge_equals_one_pass():
    images = [(outputs_of([(0, 1), (1, 2)], classes), truth_of()) for classes in ([0, 1], [0, 2])]
    parts = [PanopticEvaluator() for _ in images]
    for evaluator, image in zip(parts, images, strict=True):
        score(evaluator, *image)
    parts[0].merge(parts[1])
    result = parts[0].result()
    assert (result["panoptic/TP/person"], result["panoptic/TP/sky"], result["panoptic/FN/sky"]) == (2, 1, 1)
    parts[0].reset()
    assert np.isnan(parts[0].result()["panoptic/PQ"])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: CombinedEvaluator([]), "at least one evaluator"),
        (
            lambda: CombinedEvaluator([SemanticEvaluator(), SemanticEvaluator("general")]),
            r"different names.*Received: \['semantic', 'semantic'\]",
        ),
        (lambda: SemanticEvaluator("fast"), "Received: inference='fast'"),
        (lambda: SemanticEvaluator(restore="logits"), "Received: restore='logits'"),
        (lambda: PanopticEvaluator(overlap_threshold=80), "`overlap_threshold` must lie in 0..1.*=80"),
        (lambda: SemanticEvaluator().result(), r"semantic evaluator knows no classes yet; call bind"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()
