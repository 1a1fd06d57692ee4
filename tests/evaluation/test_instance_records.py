"""COCO instance files in every form that the format allows."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from kmaskformer.data.run_lengths import decode_mask, encode_mask
from kmaskformer.evaluation.average_precision import coco_average_precision
from kmaskformer.evaluation.instance_records import checked_results, checked_truth
from kmaskformer.evaluation.own_average_precision import own_average_precision
from kmaskformer.evaluation.score_files import score_instance_files

SIZE = (20, 30)


def square(left=5):
    mask = np.zeros(SIZE, bool)
    mask[4:14, left : left + 8] = True
    return mask


POLYGON = [[5.0, 4.0, 13.0, 4.0, 13.0, 14.0, 5.0, 14.0]]


def truth(**changes):
    annotation = {"image_id": 7, "category_id": 3, "segmentation": encode_mask(square())}
    return {
        "images": [{"id": 7, "height": 20, "width": 30}],
        "annotations": [{**annotation, **changes}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 9, "name": "cat"}],
    }


def result(**changes):
    return {"image_id": 7, "category_id": 3, "score": 0.9, "segmentation": encode_mask(square()), **changes}


def uncompressed(mask):
    flat = mask.reshape(-1, order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    return {"size": list(mask.shape), "counts": np.diff([0, *borders, flat.size]).tolist()}


def test_what_may_be_left_out_is_filled_in():
    (annotation,) = checked_truth(truth())["annotations"]
    assert (annotation["id"], annotation["iscrowd"], annotation["area"]) == (1, 0, 80)
    kept = checked_truth(truth(id=12, iscrowd=1, area=50.5))["annotations"][0]
    assert (kept["id"], kept["iscrowd"], kept["area"]) == (12, 1, 50.5)


def test_masks_come_in_three_forms():
    for segmentation in (POLYGON, uncompressed(square()), encode_mask(square())):
        (record,) = checked_results(truth(), [result(segmentation=segmentation)])
        np.testing.assert_array_equal(decode_mask(record["segmentation"]), square())


@pytest.mark.parametrize("with_pycocotools", [True, False])
@pytest.mark.parametrize("annotation", [{}, {"segmentation": POLYGON}, {"segmentation": uncompressed(square())}])
def test_scores_of_every_form(tmp_path, monkeypatch, annotation, with_pycocotools):
    if with_pycocotools:
        pytest.importorskip("pycocotools")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "truth.json").write_text(json.dumps(truth(**annotation)))
    for segmentation in (POLYGON, uncompressed(square()), encode_mask(square())):
        (tmp_path / "results.json").write_text(json.dumps([result(segmentation=segmentation)]))
        scores = score_instance_files(tmp_path / "truth.json", tmp_path / "results.json")
        assert scores["instance/AP"] == scores["instance/AP/dog"] == pytest.approx(1.0)
        assert np.isnan(scores["instance/AP/cat"])


def test_results_of_unlisted_categories_do_not_count():
    with pytest.warns(UserWarning, match=r"categories that the truth does not list are ignored: \[4\]"):
        scores = own_average_precision(truth(), [result(), result(category_id=4, score=1.0)])
    assert scores["AP"] == pytest.approx(1.0)


def test_no_true_instance_leaves_everything_undefined(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps({**truth(), "annotations": []}))
    for results in ([], [result()]):
        (tmp_path / "results.json").write_text(json.dumps(results))
        scores = score_instance_files(tmp_path / "truth.json", tmp_path / "results.json")
        assert np.isnan(scores["instance/AP"]) and "box/AP" not in scores


@pytest.mark.parametrize("score", [own_average_precision, coco_average_precision])
def test_truth_without_what_is_compared_is_refused(score):
    if score is coco_average_precision:
        pytest.importorskip("pycocotools")
    boxes = truth(bbox=[5, 4, 8, 10], area=80.0, id=1)
    del boxes["annotations"][0]["segmentation"]
    with pytest.raises(
        ValueError, match=r"Every true instance must have `segmentation` to compare segm.*1 of 1 wi.*bbox"
    ):
        score(boxes, [result()], "segm")
    assert score(boxes, [result(bbox=[5, 4, 8, 10])], "bbox")["AP"] == pytest.approx(1.0)
    del boxes["annotations"][0]["bbox"]
    with pytest.raises(ValueError, match="Every true instance must have `bbox` to compare bbox"):
        score(boxes, [result()], "bbox")


@pytest.mark.parametrize(
    ("content", "results", "message"),
    [
        (truth(), [result(segmentation=encode_mask(square().T))], r"a result of size \(30, 20\) for image_id 7 of"),
        (truth(segmentation=encode_mask(square().T)), [], r"a truth of size \(30, 20\) for image_id 7 of size \(20"),
        ({**truth(), "annotations": [{"id": 1, "image_id": 7}]}, [], r"`annotations` needs image_id, category_id"),
        (truth(), [result(image_id="7")], r"images that the truth does not have: \['7'\]"),
    ],
)
def test_errors_name_both_files(tmp_path, content, results, message):
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"results.json against .*truth.json: .*{message}"):
        score_instance_files(tmp_path / "truth.json", tmp_path / "results.json")
