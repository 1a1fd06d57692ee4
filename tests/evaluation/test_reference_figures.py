"""The figures that panopticapi, pycocotools and the published formulas give on 100 COCO images."""

from __future__ import annotations

import json

import pytest

from kmaskformer.evaluation.score_files import (
    score_instance_files,
    score_panoptic_files,
    score_semantic_from_panoptic,
)


@pytest.fixture(scope="module")
def coco(shared_folder):
    return shared_folder / "data" / "coco_panoptic_train100"


@pytest.fixture(scope="module")
def expected(coco):
    return json.loads((coco / "reference_eval" / "expected.json").read_text())


@pytest.fixture(scope="module")
def names(coco):
    """Class names by category id, as text."""
    return {str(c["id"]): c["name"] for c in json.loads((coco / "panoptic.json").read_text())["categories"]}


def files(coco):
    return coco / "panoptic.json", coco / "reference_eval" / "pred_panoptic.json"


def test_panoptic_quality(coco, expected, names):
    scores = score_panoptic_files(*files(coco))
    for category_id, figures in expected["pq"]["per_class"].items():
        name = names[category_id]
        for key in ("tp", "fp", "fn"):
            assert scores[f"panoptic/{key.upper()}/{name}"] == figures[key], (name, key)
        assert scores[f"panoptic/IoU_sum/{name}"] == pytest.approx(figures["iou"], abs=1e-9)
        for key in ("pq", "sq", "rq"):
            assert scores[f"panoptic/{key.upper()}/{name}"] == pytest.approx(figures[key], abs=1e-9)
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            assert scores[f"panoptic/{key.upper()}{suffix}"] == pytest.approx(expected["pq"][group][key], abs=1e-9)
    counted = [name for name in names.values() if scores[f"panoptic/PQ/{name}"] >= 0]
    assert len(counted) == expected["pq"]["All"]["n"]


def test_semantic_scores(coco, expected, names):
    scores, figures = score_semantic_from_panoptic(*files(coco)), expected["semantic"]
    assert scores["semantic/mIoU"] == pytest.approx(figures["mIoU_over_classes_in_gt_or_pred"], abs=1e-9)
    assert scores["semantic/mIoU_truth_classes"] == pytest.approx(figures["mIoU_over_classes_in_gt"], abs=1e-9)
    for key in ("fwIoU", "mACC", "pACC"):
        assert scores[f"semantic/{key}"] == pytest.approx(figures[key], abs=1e-9)
    for category_id, iou in figures["per_class_iou"].items():
        assert scores[f"semantic/IoU/{names[category_id]}"] == pytest.approx(iou, abs=1e-9)


def test_semantic_scores_with_void_as_class_0(coco, expected):
    figures = expected["semantic_void_to_class0"]
    scores = score_semantic_from_panoptic(*files(coco), void_to_class=0)
    assert scores["semantic/mIoU"] == pytest.approx(figures["mean_over_union_gt0"], abs=1e-9)
    # Keras' MeanIoU computes in float32.
    assert scores["semantic/mIoU"] == pytest.approx(figures["keras_3_15_MeanIoU"], abs=1e-6)
    assert scores["semantic/mIoU_truth_classes"] == pytest.approx(figures["detectron2_formula"]["mIoU"], abs=1e-9)
    for key in ("fwIoU", "mACC", "pACC"):
        assert scores[f"semantic/{key}"] == pytest.approx(figures["detectron2_formula"][key], abs=1e-9)


def test_average_precision(coco, expected):
    pytest.importorskip("pycocotools")
    folder = coco / "reference_eval"
    scores = score_instance_files(folder / "gt_instances.json", folder / "pred_instances.json")
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for prefix, kind in (("instance", "segm"), ("box", "bbox")):
        assert [scores[f"{prefix}/{key}"] for key in order] == pytest.approx(expected["ap"][kind], abs=1e-9)
    classes = [value for key, value in scores.items() if key.startswith("instance/AP/") and value == value]
    assert sum(classes) / len(classes) == pytest.approx(scores["instance/AP"], abs=1e-9)


def test_the_panoptic_sample_of_the_official_tool_against_itself(shared_folder):
    path = shared_folder / "conformance" / "panopticapi_sample" / "panoptic_examples.json"
    scores = score_panoptic_files(path, path)
    assert scores["panoptic/PQ"] == scores["panoptic/SQ_things"] == scores["panoptic/RQ_stuff"] == 1.0
