"""Average precision on cases small enough to check by hand."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.evaluation.average_precision import SCORE_NAMES, coco_average_precision
from kmaskformer.evaluation.files import instance_record


def square(left, size=40):
    mask = np.zeros((100, 300), bool)
    mask[10 : 10 + size, left : left + size] = True
    return mask


def truth(*lefts, category_id=3):
    annotations = [
        {
            "id": index + 1,
            "image_id": 7,
            "category_id": category_id,
            "iscrowd": 0,
            "area": 1600,
            "bbox": [left, 10, 40, 40],
            "segmentation": encode_mask(square(left)),
        }
        for index, left in enumerate(lefts)
    ]
    categories = [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": [{"id": 7, "height": 100, "width": 300}], "annotations": annotations, "categories": categories}


def test_one_of_two_found(capsys):
    pytest.importorskip("pycocotools")
    results = [instance_record("7", 3, 0.9, square(10))]
    for kind in ("segm", "bbox"):
        scores = coco_average_precision(truth(10, 100), results, kind)
        # Precision is 1 up to recall 0.5: 51 of the 101 recall levels.
        assert scores["AP"] == scores["AP50"] == scores["APm"] == scores["AP/dog"] == pytest.approx(51 / 101)
        assert scores["AR100"] == 0.5
        assert math.isnan(scores["APs"]) and math.isnan(scores["AP/cat"])
    assert capsys.readouterr().out == ""


def test_no_results_score_zero_where_there_is_something_to_find():
    pytest.importorskip("pycocotools")
    scores = coco_average_precision(truth(10), [])
    assert scores["AP"] == scores["AP/dog"] == 0.0 and math.isnan(scores["AP/cat"])
    assert all(name in scores for name in SCORE_NAMES)
    assert math.isnan(coco_average_precision(truth(), [])["AP"])


def test_errors():
    pytest.importorskip("pycocotools")
    record = instance_record("7", 3, 0.9, square(10))
    with pytest.raises(ValueError, match=r"`kind` must be segm or bbox. Received: kind='box'"):
        coco_average_precision(truth(10), [record], "box")
    with pytest.raises(ValueError, match=r"images that the truth does not have: \[8\]"):
        coco_average_precision(truth(10), [{**record, "image_id": 8}])
    with pytest.raises(ValueError, match=r"must have `segmentation` to compare segm. Received: 1 of 1 without"):
        coco_average_precision(truth(10), [{"image_id": 7, "category_id": 3, "score": 1.0, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(ValueError, match=r"`categories`. Received: \['images'\]"):
        coco_average_precision({"images": []}, [record])
    with pytest.raises(ValueError, match="a panoptic JSON; score it as panoptic"):
        coco_average_precision({**truth(), "annotations": [{"segments_info": []}]}, [record])


def test_a_missing_pycocotools_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"install\.sh coco"):
        coco_average_precision(truth(10), [])
