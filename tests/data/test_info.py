"""Class tables in every format give the same record, and bad ones an error that names the file."""

from __future__ import annotations

import json

import pytest

from kmaskformer.data.info import read_info
from kmaskformer.structures import DatasetInfo

COLORS = ((60, 16, 152), (132, 41, 246))


def test_json_with_classes(tmp_path):
    path = tmp_path / "roads.json"
    path.write_text(json.dumps({"classes": ["road", "car"], "colors_rgb": ["3C1098", "#8429F6"], "ignore": 11}))
    info = read_info(path)
    assert info == DatasetInfo("roads", ("road", "car"), (), COLORS, 11)
    assert read_info(path, name="x", things=["car"], ignore_value=7) == DatasetInfo(
        "x", ("road", "car"), (1,), COLORS, 7
    )


def test_a_file_called_classes_is_named_after_its_folder(tmp_path):
    (tmp_path / "camvid").mkdir()
    (tmp_path / "camvid" / "classes.json").write_text('{"classes": ["a", "b"], "things": ["b"], "name": ""}')
    info = read_info(tmp_path / "camvid" / "classes.json")
    assert (info.name, info.thing_ids, info.ignore_value) == ("camvid", (1,), 255)


def test_coco_categories_follow_the_order_of_the_ids(tmp_path):
    categories = [
        {"id": 90, "name": "sky", "isthing": 0, "color": [132, 41, 246]},
        {"id": 3, "name": "car", "isthing": 1, "color": [60, 16, 152]},
    ]
    expected = DatasetInfo("coco", ("car", "sky"), (0,), COLORS, 255, (3, 90))
    assert read_info(categories, name="coco") == expected
    (tmp_path / "coco.json").write_text(json.dumps({"categories": categories}))
    assert read_info(tmp_path / "coco.json") == expected


def test_csv(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('color,id,isthing,name\n#3C1098,7,0,"road, street"\n#8429F6,5,1,car\n')
    assert read_info(path) == DatasetInfo("table", ("road, street", "car"), (1,), COLORS, 255, (7, 5))
    path.write_text("name,id,trainId\nsky,9,1\nwall,4,0\n")
    info = read_info(path)
    assert (info.class_names, info.dataset_ids) == (("wall", "sky"), (4, 9))


def test_names_and_records_in_memory():
    assert read_info(["a", "b"]) == DatasetInfo("custom", ("a", "b"))
    info = DatasetInfo("x", ("a", "b"), (1,), COLORS, 11, (5, 6))
    assert read_info(info) == info
    assert read_info(info.to_dict()) == info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as .json"),
        ('{"labels": []}', r"must have an entry `classes` or `categories`.*\['labels'\]"),
        ('{"classes": ["a", "a"]}', "`class_names` must not repeat"),
        ('{"classes": ["a"], "colors_rgb": ["12345"]}', "six hex digits.*'12345'"),
        ('{"classes": ["a"], "colors_rgb": ["zzzzzz"]}', "six hex digits.*'zzzzzz'"),
        ('{"classes": ["a"], "things": ["b"]}', "unknown class 'b'. Classes: a"),
        ('{"classes": ["pedestrian"], "things": ["pedestrain"]}', "Did you mean 'pedestrian'"),
        ('{"classes": [1, 2]}', "a class must be a name, or a record with `name`. Received: 1"),
        ('{"categories": [{"id": 1}]}', "missing entry 'name'"),
        ('{"classes": ["a"], "colors_rgb": ["000000", "000001"]}', r"`colors` must have one entry per class \(1\)"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=f"bad.json: .*{message}"):
        read_info(tmp_path / "bad.json")


def test_missing_and_headless_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.json: no such class table"):
        read_info(tmp_path / "none.json")
    (tmp_path / "t.csv").write_text("road\ncar\n")
    with pytest.raises(ValueError, match=r"t.csv: .*must name the columns.*road"):
        read_info(tmp_path / "t.csv")


def test_ids_are_given_for_all_classes_or_none():
    with pytest.raises(ValueError, match=r"`id` must be given for all classes or for none. Received: none for 'c'"):
        read_info([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"name": "c"}])


def test_train_ids_are_the_contiguous_ids(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,id,trainId\nplate,34,-1\nsidewalk,8,1\nunlabeled,0,255\nroad,7,0\n")
    info = read_info(path)
    assert info.class_names == ("road", "sidewalk") and info.dataset_ids == (7, 8)
    path.write_text("name,id,trainId\nroad,7,0\nsky,23,2\n")
    with pytest.raises(ValueError, match=r"labels\.csv: cannot be read as \.csv \(`trainId` must number the classes"):
        read_info(path)


def test_a_json_file_may_hold_ids_and_names(tmp_path):
    path = tmp_path / "cracks.json"
    path.write_text('{"255": "crack", "0": "wall"}')
    info = read_info(path)
    assert info.class_names == ("wall", "crack") and info.dataset_ids == (0, 255)
