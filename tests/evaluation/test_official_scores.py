"""Scores of small cases, against what the official tools say of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kmaskformer.evaluation.cityscapes_iou import CityscapesIoU
from kmaskformer.evaluation.evaluator import Truth
from kmaskformer.evaluation.semantic_evaluators import PanopticStuffEvaluator
from kmaskformer.structures import DatasetInfo


def test_panoptic_quality_of_semantic_maps_is_that_of_panopticapi(official):
    evaluator = PanopticStuffEvaluator()
    evaluator.bind(DatasetInfo("toy", tuple("abcdefg"), thing_ids=official.STUFF_THINGS))
    for predicted, true in official.semantic_pairs():
        labels = np.arange(official.STUFF_CLASSES, dtype=np.int32)
        flags = np.zeros((2, len(labels)), bool)
        truth = Truth(true.astype(np.int32), labels, flags[0], ~flags[1], "image")
        evaluator.update({"class_map": predicted.astype(np.int32)}, truth)
    scores, expected = evaluator.result(), official.scores["panoptic_stuff"]
    for suffix, group in (("", "all"), ("_things", "things"), ("_stuff", "stuff")):
        for key in ("PQ", "SQ", "RQ"):
            value = expected["averages"][group][key.lower()]
            assert scores[f"panoptic_stuff/{key}{suffix}"] == pytest.approx(value, abs=1e-12)
    for number, name in enumerate("abcdefg"):
        counts = expected["classes"][str(number)]
        for key in ("tp", "fp", "fn"):
            assert scores[f"panoptic_stuff/{key.upper()}/{name}"] == counts[key], (name, key)
        assert scores[f"panoptic_stuff/IoU_sum/{name}"] == pytest.approx(counts["iou"], abs=1e-12)
    assert sum(counts["tp"] for counts in expected["classes"].values()) > 10


def test_scores_of_streets_are_those_of_cityscapesscripts(official):
    metric = CityscapesIoU(tuple(official.CITYSCAPES))
    for street in official.streets():
        metric.update(*street)
    scores, expected = metric.result(), official.scores["cityscapes"]
    tables = {
        "IoU": "classScores",
        "iIoU": "classInstScores",
        "IoU_categories": "categoryScores",
        "iIoU_categories": "categoryInstScores",
    }
    for prefix, table in tables.items():
        values = {f"{prefix}/{name}": value for name, value in expected[table].items() if value is not None}
        ours = {key: value for key, value in scores.items() if key.startswith(f"{prefix}/") and not math.isnan(value)}
        assert ours == pytest.approx(values, abs=1e-12)
    averages = (
        "averageScoreClasses",
        "averageScoreInstClasses",
        "averageScoreCategories",
        "averageScoreInstCategories",
    )
    for prefix, key in zip(tables, averages, strict=True):
        assert scores[prefix] == pytest.approx(expected[key], abs=1e-12)
