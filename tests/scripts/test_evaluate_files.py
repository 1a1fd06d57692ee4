"""The script that scores files, from its arguments to its metrics.json."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from kmaskformer.evaluation import score_files
from kmaskformer.evaluation.files import PanopticWriter, encode_mask, instance_record, write_instances, write_label_map
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky"), thing_ids=(0,), dataset_ids=(1, 187))
TRUTH = np.array([[1, 1, 2, 2]] * 2, np.int32)
SEGMENTS = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}]


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("evaluate_files", repository / "scripts" / "evaluate_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_panoptic(path, *maps, folder=None, segments=SEGMENTS):
    writer = PanopticWriter(path, INFO, folder)
    for image_id, segmentation in enumerate(maps):
        writer.add(str(image_id), segmentation, segments)
    return str(writer.save())


@pytest.fixture()
def panoptic(tmp_path):
    """Truth and predictions; the second image's segments have their classes exchanged."""
    truth = write_panoptic(tmp_path / "truth.json", TRUTH, TRUTH)
    predictions = write_panoptic(tmp_path / "predictions.json", TRUTH, 3 - TRUTH, folder=tmp_path / "elsewhere")
    return ["--truth", truth, "--predictions", predictions, "--predictions-folder", str(tmp_path / "elsewhere")]


def run(script, tmp_path, *arguments):
    status = script.main([*arguments, "--output", str(tmp_path / "out" / "metrics.json")])
    return json.loads((tmp_path / "out" / "metrics.json").read_text()) if status == 0 else status


def test_panoptic(script, tmp_path, panoptic, capsys):
    scores = run(script, tmp_path, "panoptic", *panoptic)
    # Of each class one segment is found, one missed and one invented.
    assert scores["panoptic/PQ"] == scores["panoptic/PQ_things"] == scores["panoptic/PQ/sky"] == 0.5
    assert scores["panoptic/SQ"] == 1.0 and scores["panoptic/FN/person"] == 1
    assert "panoptic/PQ           0.5000" in capsys.readouterr().out


def test_an_option_without_effect_is_said(script, tmp_path, panoptic, capsys):
    assert run(script, tmp_path, "panoptic", *panoptic, "--classes", "2")["panoptic/PQ"] == 0.5
    assert "--classes has no effect on panoptic scores" in capsys.readouterr().err
    run(script, tmp_path, "panoptic", *panoptic)
    assert "no effect" not in capsys.readouterr().err


def test_semantic_from_panoptic_files(script, tmp_path, panoptic):
    scores = run(script, tmp_path, "semantic", *panoptic)
    assert scores["semantic/IoU/sky"] == scores["semantic/mIoU"] == pytest.approx(1 / 3)


def test_semantic(script, tmp_path, capsys):
    write_label_map(tmp_path / "truth" / "a" / "x.png", np.array([[0, 1, 255, 1]]))
    write_label_map(tmp_path / "predictions" / "a" / "x.png", np.array([[0, 1, 0, 255]]))
    folders = ["--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions"), "--classes", "2"]
    scores = run(script, tmp_path, "semantic", *folders)
    assert scores["semantic/mIoU"] == scores["semantic/mIoU_truth_classes"] == pytest.approx((1 + 1 / 2) / 2)
    scores = run(script, tmp_path, "semantic", *folders, "--void-to-class", "0")
    assert scores["semantic/IoU/class 0"] == pytest.approx(1 / 2)
    assert "semantic/mIoU" in capsys.readouterr().out


def test_more_than_255_classes_are_ignored_at_65535(script, tmp_path):
    write_label_map(tmp_path / "maps" / "x.png", np.array([[0, 846, 255, 65535]]))
    folder = str(tmp_path / "maps")
    arguments = ["semantic", "--truth", folder, "--predictions", folder, "--classes", "847"]
    assert run(script, tmp_path, *arguments)["semantic/pACC"] == 1.0
    assert run(script, tmp_path, *arguments, "--ignore", "846") == 1


def test_instance(script, tmp_path):
    pytest.importorskip("pycocotools")
    mask = np.zeros((20, 20), bool)
    mask[4:15, 3:12] = True
    annotation = {"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0, "area": 99}
    truth = {
        "images": [{"id": 5, "height": 20, "width": 20}],
        "annotations": [{**annotation, "segmentation": encode_mask(mask)}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    write_instances(tmp_path / "results.json", [instance_record("5", 1, 0.8, mask)])
    files = ["--truth", str(tmp_path / "truth.json"), "--predictions", str(tmp_path / "results.json")]
    scores = run(script, tmp_path, "instance", *files)
    for key in ("AP", "AP75", "AP/person"):
        assert scores[f"instance/{key}"] == pytest.approx(1.0)
    assert scores["instance/APl"] is None and "box/AP" not in scores


def test_label_folders_need_the_number_of_classes(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["semantic", "--truth", "a", "--predictions", "b"])
    assert "add --classes N" in capsys.readouterr().err


def test_wrong_files_end_with_one_line_and_status_1(script, tmp_path, capsys):
    assert script.main(["panoptic", "--truth", "no.json", "--predictions", "no.json"]) == 1
    assert capsys.readouterr().err == "error: no.json: no such JSON file\n"


def test_panoptic_files_that_do_not_fit(tmp_path):
    truth = write_panoptic(tmp_path / "truth.json", TRUTH, TRUTH)
    one = write_panoptic(tmp_path / "one.json", TRUTH)
    with pytest.raises(ValueError, match=r"one.json: every image .* Missing: 1 of 2, first image_id 1"):
        score_files.score_panoptic_files(truth, one)
    small = write_panoptic(tmp_path / "small.json", TRUTH, TRUTH[:1])
    with pytest.raises(ValueError, match=r"image 1: Prediction and truth must have the same size"):
        score_files.score_panoptic_files(truth, small)
    unlisted = write_panoptic(tmp_path / "unlisted.json", TRUTH, TRUTH, segments=SEGMENTS[:1])
    with pytest.raises(ValueError, match=r"image 0: .* table lacks: \[2\]"):
        score_files.score_panoptic_files(truth, unlisted)
    with pytest.raises(ValueError, match="truth must have at least one annotation"):
        score_files.score_panoptic_files(write_panoptic(tmp_path / "none.json"), truth)


def test_categories_that_do_not_fit(tmp_path):
    truth = write_panoptic(tmp_path / "truth.json", TRUTH)
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 99
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other.json: segments must have a category of the truth.*\[99\]"):
        score_files.score_panoptic_files(truth, tmp_path / "other.json", predictions_folder=tmp_path / "truth")
    (tmp_path / "bare.json").write_text(json.dumps({"annotations": content["annotations"]}))
    with pytest.raises(ValueError, match=r"bare.json: the truth must list `categories`"):
        score_files.score_panoptic_files(tmp_path / "bare.json", truth, truth_folder=tmp_path / "truth")


def test_label_folders_that_do_not_fit(tmp_path):
    truth = tmp_path / "truth"
    with pytest.raises(FileNotFoundError, match="truth: no such folder of label PNGs"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    truth.mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder without any .png"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    write_label_map(truth / "x.png", np.array([[0, 7]]))
    with pytest.raises(FileNotFoundError, match=r"needs a prediction of the same name. Missing: 1 of 1, first x.png"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    with pytest.raises(ValueError, match=r"x.png against .*x.png: Truth must hold class ids 0..1 .*\[7\]"):
        score_files.score_semantic_folders(truth, truth, 2)
