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
    assert (kept["id"], kept["iscrowd"], kept["area"]) == (1, 1, 50.5)


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


def several():
    """Three images of two instances each, found but for the last, one of them by a wrong mask."""
    annotations, results = [], []
    for image_id in (7, 8, 9):
        for number, left in enumerate((2, 18)):
            one = {"image_id": image_id, "category_id": 3 if number else 9, "segmentation": encode_mask(square(left))}
            annotations.append({**one, "id": len(annotations) + 1, "area": 80, "iscrowd": 0})
            results.append({**one, "score": 0.9 - 0.1 * len(results)})
    results[1]["segmentation"] = encode_mask(square(22))
    images = [{"id": image_id, "height": 20, "width": 30} for image_id in (7, 8, 9)]
    return {**truth(), "images": images, "annotations": annotations}, results[:-1]


def number_from_zero(content, results):
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


def repeat_an_id(content, results):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def leave_sizes_out(content, results):
    for image in content["images"]:
        del image["height"], image["width"]


def leave_true_boxes_null(content, results):
    content["annotations"][0]["bbox"] = None


def give_every_result_the_box_of_its_mask(content, results):
    for record in results:
        left = 2 if record["category_id"] == 9 else 18
        record["bbox"] = [left, 4, 8, 10]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize(
    "change", [number_from_zero, repeat_an_id, leave_sizes_out, leave_true_boxes_null, lambda content, results: None]
)
def test_what_says_nothing_about_the_masks_changes_no_score(change, kind):
    pytest.importorskip("pycocotools")
    expected = own_average_precision(*several(), kind)
    # Of "dog" the surest result overlaps by a third, the next is right and the last instance not found: precision 1/2
    # up to a recall of 1/3, of 101 recalls 34. All of "cat" is found.
    assert expected["AP/dog"] == pytest.approx(34 / 101 / 2)
    assert expected["AP/cat"] == pytest.approx(1.0)
    content, results = several()
    change(content, results)
    for score in (own_average_precision, coco_average_precision):
        assert score(content, results, kind) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_a_box_of_the_first_result_alone_changes_nothing_but_the_box(kind):
    pytest.importorskip("pycocotools")
    content, results = several()
    give_every_result_the_box_of_its_mask(content, results[:1])
    scores = own_average_precision(content, results, kind)
    assert coco_average_precision(content, results, kind) == pytest.approx(scores, nan_ok=True)


def test_without_results_sizes_that_nothing_has_are_undefined():
    pytest.importorskip("pycocotools")
    content, _ = several()
    expected = {"AP": 0.0, "APs": 0.0, "APm": np.nan, "APl": np.nan, "AR100": 0.0, "ARm": np.nan, "AP/dog": 0.0}
    for score in (own_average_precision, coco_average_precision):
        scores = score(content, [])
        assert {key: scores[key] for key in expected} == pytest.approx(expected, nan_ok=True)


def cut_off(segmentation):
    return {**segmentation, "counts": segmentation["counts"][:-1]}


@pytest.mark.parametrize("score", [own_average_precision, coco_average_precision])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": float("nan")}, r"`score` of each result must be a finite number.*'nan' of image_id 7, in entry 0"),
        ({"score": "0.5"}, r"`score` of each result must be a finite number.*'0.5'"),
        ({"score": None}, r"`score` of each result must be a finite number.*'None'"),
        (
            {"segmentation": {"size": [20, 30], "counts": "0Pl^1"}},
            r"result of image_id 7: .*30 = 600.*48000",
        ),
        ({"segmentation": cut_off(encode_mask(square()))}, r"result of image_id 7: Run lengths must add up"),
        (
            {"segmentation": {"size": [20, 30], "counts": ""}},
            r"of image_id 7: .*runs that add up to 0",
        ),
        ({"segmentation": {"size": [20, 30], "counts": None}}, r"result of image_id 7: .*counts of type NoneType"),
        ({"segmentation": {"size": [20, 30], "counts": ["a"]}}, r"result of image_id 7: .*must be whole numbers"),
        ({"segmentation": None}, r"Every result must have `segmentation`"),
        ({"segmentation": []}, r"Every result must have `segmentation`"),
        ({"bbox": [1, 2, 3]}, r"`bbox` of each result must be left, top, width and height, four numbers"),
        ({"category_id": "3"}, r"`category_id` of each result must be a whole number.*'3'"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(score, changes, message):
    if score is coco_average_precision:
        pytest.importorskip("pycocotools")
    with pytest.raises(ValueError, match=message):
        score(truth(), [result(**changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 77}, r"Annotations name images that the truth does not have: \[77\]"),
        ({"category_id": 77}, r"Annotations name categories that the truth does not list: \[77\]"),
        ({"iscrowd": "0"}, r"`iscrowd` of each true instance must be 0 or 1. Received: '0' of image_id 7"),
        ({"iscrowd": 2}, r"`iscrowd` of each true instance must be 0 or 1"),
        ({"area": float("nan")}, r"`area` of each true instance must be a number from 0 on"),
        ({"area": "9"}, r"`area` of each true instance must be a number from 0 on"),
        ({"segmentation": []}, r"Every true instance must have `segmentation`"),
        ({"segmentation": cut_off(encode_mask(square()))}, r"truth of image_id 7: Run lengths must add up"),
    ],
)
def test_true_instances_that_cannot_be_compared_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        checked_truth(truth(**changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"categories": [{"id": "90"}]}, r"`id` of each category must be a whole number.*'90'"),
        ({"images": [{"id": 7, "height": "20", "width": 30}]}, r"`height` of each image must be a positive whole"),
        ({"images": {"id": 7}}, r"The truth's `images` must be a list of objects"),
    ],
)
def test_lists_of_something_else_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        checked_truth({**truth(), **content})
