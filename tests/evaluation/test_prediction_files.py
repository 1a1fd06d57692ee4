"""Prediction files are written as the official tools read them, and metrics as JSON, CSV and text."""

from __future__ import annotations

import csv
import json
import types

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.images import read_label_map, read_panoptic_ids
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.run_lengths import decode_mask
from kmaskformer.evaluation import files, score_tables
from kmaskformer.evaluation.prediction_files import PredictionFiles
from kmaskformer.json_files import read_json
from kmaskformer.structures import VOID, DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky"), thing_ids=(0,), dataset_ids=(1, 187))


def test_panoptic_round_trip(tmp_path):
    writer = files.PanopticWriter(tmp_path / "predictions.json", INFO)
    segmentation = np.array([[0, 1, 1], [2**24 - 1, 70000, 0]], np.int32)
    segments = [{"id": 1, "category_id": 0, "area": 2}, {"id": 70000, "category_id": 1}]
    writer.add("000000000139", segmentation, [*segments, {"id": 2**24 - 1, "category_id": 1}])
    writer.add("city/street", np.zeros((2, 2), np.int32), [])
    content = json.loads(writer.save().read_text())
    assert content["categories"][1] == {"id": 187, "name": "sky", "color": list(INFO.colors[1]), "isthing": 0}
    assert content["annotations"][0]["segments_info"][:2] == [
        {"id": 1, "category_id": 1, "area": 2, "iscrowd": 0},
        {"id": 70000, "category_id": 187, "area": 1, "iscrowd": 0},
    ]
    file = files.read_panoptic_file(tmp_path / "predictions.json")
    assert list(file.annotations) == [139, "city/street"]
    annotation = file.annotations[139]
    np.testing.assert_array_equal(read_panoptic_ids(file.folder / annotation["file_name"]), segmentation)
    info = files.info_of_categories(file.categories, name="toy")
    assert (info.class_names, info.thing_ids, info.dataset_ids) == (INFO.class_names, (0,), (1, 187))


def test_categories_are_numbered_by_their_ids_and_told_apart():
    info = files.info_of_categories([{"id": 90, "name": "x", "isthing": 0}, {"id": 3, "name": "x"}, {"id": 5}])
    assert info.class_names == ("x 3", "5", "x 90")
    assert info.thing_ids == (0, 1)


@pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (846, np.uint16)])
def test_label_maps(tmp_path, highest, dtype):
    labels = np.array([[0, highest], [3, 4]])
    files.write_label_map(tmp_path / "new" / "a.png", labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "new" / "a.png"), labels)
    assert np.asarray(Image.open(tmp_path / "new" / "a.png")).dtype == dtype


def test_label_maps_with_dataset_ids(tmp_path):
    files.write_label_map(tmp_path / "a.png", np.array([[0, 1]]), INFO.dataset_ids)
    assert read_label_map(tmp_path / "a.png").tolist() == [[1, 187]]


@pytest.mark.parametrize("dataset_ids", [(70000, 5), (-1, 5)])
def test_dataset_ids_that_do_not_fit_are_refused_and_not_written(tmp_path, dataset_ids):
    files.write_label_map(tmp_path / "a.png", np.array([[1]]), dataset_ids)
    low, high = min(dataset_ids), max(dataset_ids)
    with pytest.raises(ValueError, match=rf"0..65535. Received: {low}..{high} from `dataset_ids` for .*b.png"):
        files.write_label_map(tmp_path / "b.png", np.array([[0, 1]]), dataset_ids)
    assert not (tmp_path / "b.png").exists()


def test_ids_of_digits_are_numbers():
    assert [files.file_id(one) for one in ("007", 7, "7a", "²", "1²")] == [7, 7, "7a", "²", "1²"]


def nothing():
    blank = np.zeros((2, 2), np.int32)
    return types.SimpleNamespace(segmentation=blank, segments=[], masks=np.zeros((0, 2, 2), bool))


@pytest.mark.parametrize(
    ("task", "first", "second"),
    [("panoptic", "1", "01"), ("panoptic", "a/x", "a_x"), ("instance", "1", "01"), ("semantic", "x", "x")],
)
def test_a_second_image_of_the_same_id_is_refused(tmp_path, task, first, second):
    writer = PredictionFiles(tmp_path, task, INFO)
    writer.add(first, nothing())
    writer.add("another", nothing())
    with pytest.raises(ValueError, match=f"Received: '{second}' after '{first}'.*rename one of the files"):
        writer.add(second, nothing())


def test_names_of_label_maps_are_no_numbers(tmp_path):
    writer = PredictionFiles(tmp_path, "semantic", INFO)
    for name in ("1", "01"):
        writer.add(name, nothing())
    assert sorted(path.name for path in writer.save().iterdir()) == ["01.png", "1.png"]


def test_instances_round_trip(tmp_path):
    record = files.instance_record("000000000139", 18, np.float32(0.5), np.eye(3, dtype=bool))
    files.write_instances(tmp_path / "results.json", [record])
    (read,) = files.read_instances(tmp_path / "results.json")
    assert (read["image_id"], read["category_id"], read["score"]) == (139, 18, 0.5)
    np.testing.assert_array_equal(decode_mask(read["segmentation"]), np.eye(3))


SCORES = {"panoptic/PQ": 0.5, "panoptic/PQ/person": float("nan"), "panoptic/TP/person": 12.0, "semantic/mIoU": np.nan}


def test_metrics_as_json_and_csv(tmp_path):
    content = json.loads(score_tables.write_metrics(SCORES, tmp_path / "run" / "metrics.json").read_text())
    assert content == {"panoptic/PQ": 0.5, "panoptic/PQ/person": None, "panoptic/TP/person": 12, "semantic/mIoU": None}
    with score_tables.write_metrics(SCORES, tmp_path / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[:3] == [["name", "value"], ["panoptic/PQ", "0.5"], ["panoptic/PQ/person", ""]]


@pytest.mark.parametrize("name", ["straße", "道路"])
def test_names_of_any_alphabet_are_written_as_utf_8(tmp_path, monkeypatch, name):
    # Where the locale's encoding is another.
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    path = score_tables.write_metrics({f"semantic/IoU/{name}": 0.5}, tmp_path / "metrics.csv")
    assert path.read_bytes().decode("utf-8").splitlines() == ["name,value", f"semantic/IoU/{name},0.5"]
    (tmp_path / "names.json").write_bytes(f'"{name}"'.encode())
    assert read_json(tmp_path / "names.json") == name


def test_summary_and_table():
    assert list(score_tables.summarize(SCORES)) == ["panoptic/PQ", "semantic/mIoU"]
    assert score_tables.format_scores(SCORES).splitlines() == ["panoptic/PQ    0.5000", "semantic/mIoU       -"]
    assert score_tables.format_scores({"evaluation/images": 12.0}) == "evaluation/images      12"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda p: read_json(p / "a.json"), FileNotFoundError, "a.json: no such JSON file"),
        (lambda p: read_json(write(p / "a.json", "{")), ValueError, "a.json: cannot be read as JSON"),
        (lambda p: files.read_panoptic_file(write(p / "a.json", [])), ValueError, "a.json: expected a COCO panoptic"),
        (
            lambda p: files.read_panoptic_file(write(p / "a.json", {"annotations": []})),
            FileNotFoundError,
            "a: no such folder of panoptic PNGs for .*a.json",
        ),
        (
            lambda p: files.read_panoptic_file(write(p / "a.json", {"annotations": [{"image_id": 1}]}), p),
            ValueError,
            r"one lacks file_name, segments_info. Received keys: \['image_id'\]",
        ),
        (
            lambda p: files.read_instances(write(p / "a.json", [{"id": 1}])),
            ValueError,
            "a.json: expected a COCO result",
        ),
        (lambda p: files.info_of_categories([]), ValueError, "at least one category"),
        (lambda p: score_tables.write_metrics({}, p / "a.txt"), ValueError, r"\.json or \.csv. Received: path=.*a.txt"),
        (lambda p: files.write_panoptic_png(p / "a.png", np.array([[2**24]])), ValueError, "0..16777215. Received: "),
        (lambda p: files.write_label_map(p / "a.png", np.array([[-1]])), ValueError, "0..65535. Received: -1..-1"),
        (lambda p: files.write_label_map(p / "a.png", np.array([[2]]), (1, 187)), ValueError, "0..1. Received: 2..2"),
    ],
)
def test_errors(tmp_path, action, error, message):
    with pytest.raises(error, match=message):
        action(tmp_path)


@pytest.mark.parametrize(("space", "ids"), [("ade20k_150", [1, 150, 255]), ("cityscapes_19", [7, 33, 255])])
def test_label_pngs_hold_the_ids_that_the_servers_of_the_benchmarks_take(tmp_path, space, ids):
    info = label_space(space)
    writer = PredictionFiles(tmp_path, "semantic", info)
    class_map = np.array([[0, info.num_classes - 1, VOID]], np.int32)
    writer.add("image", types.SimpleNamespace(segmentation=class_map))
    stored = Image.open(writer.save() / "image.png")
    assert stored.mode == "L" and np.asarray(stored).tolist() == [ids]


@pytest.mark.parametrize(
    ("segmentation", "segments", "message"),
    [
        ([[1, 1]], [{"id": 1, "category_id": -1}], r"image '7' must have contiguous class ids 0..1. Received: \[-1\]"),
        ([[1, 1]], [{"id": 1, "category_id": 2}], r"contiguous class ids 0..1. Received: \[2\]"),
        ([[1, 2]], [{"id": 1, "category_id": 0}], r"Received: \[2\] in the map, \[\] in `segments` alone"),
        ([[1, 0]], [{"id": i, "category_id": 0} for i in (1, 3)], r"Received: \[\] in the map, \[3\] in `segments` al"),
        ([[1.0, 0.0]], [{"id": 1, "category_id": 0}], "Maps must hold integers"),
    ],
)
def test_panoptic_files_that_no_tool_would_take_are_not_written(tmp_path, segmentation, segments, message):
    writer = files.PanopticWriter(tmp_path / "predictions.json", INFO)
    with pytest.raises(ValueError, match=message):
        writer.add("7", np.array(segmentation), segments)
    assert list(writer.folder.iterdir()) == []


def test_scores_that_no_json_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"must be a finite number. Received: nan of image 'a'"):
        files.instance_record("a", 1, float("nan"), np.ones((2, 2), bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [1]}, r"`image_id` must be a number or text and `file_name` text. Received: image_id=\[1\]"),
        ({"file_name": 7}, r"`image_id` must be .* text. Received: image_id=1, file_name=7"),
        ({"segments_info": None}, r"`segments_info` must be a list, .*None of image_id 1"),
        ({"segments_info": [7]}, r"each segment needs whole numbers `id` and `category_id`. Received: 7"),
        ({"id": 2**70}, r"ids of segments must lie in 0..16777215"),
        ({"iscrowd": "0"}, r"`iscrowd` must be 0 or 1. Received: '0' of image_id 1"),
        ({"iscrowd": 2}, r"`iscrowd` must be 0 or 1"),
        ({"area": None}, r"`area` must be a whole number of pixels, or left out. Received: None of image_id 1"),
        ({"area": "many"}, r"`area` must be a whole number of pixels"),
    ],
)
def test_panoptic_files_of_something_else_are_refused(tmp_path, change, message):
    segment = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 4.0}
    annotation = {"image_id": 1, "file_name": "1.png", "segments_info": [segment]}
    (annotation if next(iter(change)) in annotation else segment).update(change)
    path = tmp_path / "truth.json"
    path.with_suffix("").mkdir()
    path.write_text(json.dumps({"annotations": [annotation], "categories": []}))
    with pytest.raises(ValueError, match=rf"truth.json: {message}"):
        files.read_panoptic_file(path)
