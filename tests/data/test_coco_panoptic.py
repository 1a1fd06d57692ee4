"""The COCO panoptic format, whole and damaged."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.coco_panoptic import CocoPanoptic
from kmaskformer.structures import DatasetInfo

IDS = np.array([[0, 300, 300], [70000, 9, 9]])
CONTENT = {
    "images": [{"id": 42, "file_name": "a.jpg", "height": 2, "width": 3}],
    "categories": [
        {"id": 90, "name": "sky", "isthing": 0},
        {"id": 3, "name": "car", "isthing": 1},
    ],
    "annotations": [
        {
            "image_id": 42,
            "file_name": "a.png",
            "segments_info": [
                {"id": 70000, "category_id": 90, "iscrowd": 0},
                {"id": 300, "category_id": 3, "iscrowd": 0},
                {"id": 9, "category_id": 3, "iscrowd": 1},
            ],
        }
    ],
}


class Folder:
    """A dataset of one image, whose JSON a test may damage."""

    def __init__(self, root):
        self.root, self.content = root, copy.deepcopy(CONTENT)
        (root / "images").mkdir()
        (root / "panoptic").mkdir()
        Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(root / "images" / "a.jpg")
        self.write_ids(IDS)

    def write_ids(self, ids):
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(colors).save(self.root / "panoptic" / "a.png")

    def read(self, **options):
        (self.root / "p.json").write_text(json.dumps(self.content))
        options = {"images": "images"} | options
        return CocoPanoptic(labels="panoptic", annotations="p.json", root=self.root, **options)


@pytest.fixture()
def folder(tmp_path):
    return Folder(tmp_path)


def test_sample(folder):
    reader = folder.read()
    assert reader.info == DatasetInfo("p", ("car", "sky"), (0,), dataset_ids=(3, 90))
    assert len(reader) == 1
    assert reader.files(0) == tuple(folder.root / name for name in ("images/a.jpg", "panoptic/a.png", "p.json"))
    sample = reader[0]
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 1, 1], [2, 0, 0]])
    np.testing.assert_array_equal(sample["labels"], [0, 0, 1])
    np.testing.assert_array_equal(sample["is_crowd"], [True, False, False])
    assert sample["image_id"] == "42" and sample["image"].shape == (2, 3, 3)
    assert sample["segment_map"].dtype == np.int32 and sample["labels"].dtype == np.int32


def test_an_image_without_segments(folder):
    folder.write_ids(IDS * 0)
    folder.content["annotations"][0]["segments_info"] = []
    sample = folder.read()[0]
    assert sample["labels"].shape == (0,) and (sample["segment_map"] == -1).all()


def test_info_and_image_pattern_replace_what_the_json_lacks(folder):
    del folder.content["images"], folder.content["categories"]
    folder.content["annotations"][0]["image_id"] = "a"
    info = DatasetInfo("mine", ("sky", "car"), (1,), dataset_ids=(90, 3))
    reader = folder.read(images="images/{image_id}.jpg", info=info)
    np.testing.assert_array_equal(reader[0]["labels"], [1, 1, 0])
    with pytest.raises(ValueError, match=r"`images` must list every annotated image.*image a, which is not listed"):
        folder.read(info=info)
    with pytest.raises(ValueError, match=r"p.json: every category must have.*no categories"):
        folder.read(images="images/{image_id}.jpg")


def test_missing_files(folder):
    (folder.root / "panoptic" / "a.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"p.json names 1 panoptic PNG file\(s\) that do not exist.*panoptic/a.png"
    ):
        folder.read()
    (folder.root / "images" / "a.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"p.json names 1 image file\(s\) that do not exist, first: .*images/a.jpg"
    ):
        folder.read()
    with pytest.raises(FileNotFoundError, match=r"none.json: no such annotation file"):
        CocoPanoptic("images", "panoptic", "none.json", root=folder.root)


def test_png_and_table_that_disagree(folder):
    folder.write_ids(np.where(IDS == 0, 301, IDS))
    with pytest.raises(
        ValueError, match=r"a.png: every segment id must be in the table of image 42 .*ids \[301\] \(1 pix"
    ):
        folder.read()[0]
    folder.write_ids(np.where(IDS == 300, 0, IDS))
    with pytest.raises(
        ValueError, match=r"a.png: every segment of image 42 .*must have pixels.*no pixel of ids \[300\]"
    ):
        folder.read()[0]


def test_repeated_ids(folder):
    folder.content["annotations"][0]["segments_info"][1]["id"] = 9
    with pytest.raises(
        ValueError, match=r"p.json: segment id of image 42 must occur once. Received more than once: \[9\]"
    ):
        folder.read()
    folder.content = copy.deepcopy(CONTENT)
    folder.content["annotations"] *= 2
    with pytest.raises(ValueError, match=r"p.json: image id must occur once.*\[42\]"):
        folder.read()
    folder.content = copy.deepcopy(CONTENT)
    folder.content["images"] *= 2
    with pytest.raises(ValueError, match=r"image id in `images` must occur once"):
        folder.read()
    folder.content = copy.deepcopy(CONTENT)
    folder.content["categories"] *= 2
    with pytest.raises(ValueError, match=r"p.json: .*must not repeat"):
        folder.read()


def test_unknown_category(folder):
    folder.content["annotations"][0]["segments_info"][1]["category_id"] = 4
    with pytest.raises(
        ValueError, match=r"p.json: image 42 has segments of unknown categories. Received: category_id \[4\]"
    ):
        folder.read()


@pytest.mark.parametrize("value", ["false", 2, None, [0]])
def test_a_crowd_is_0_or_1(folder, value):
    folder.content["annotations"][0]["segments_info"][1]["iscrowd"] = value
    message = f"p.json: image 42 has segment 300: `iscrowd` must be 0, 1, true or false. Received: {value!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        folder.read()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *[
            (lambda c, value=value: c["annotations"][0]["segments_info"][1].update(id=value), "`id` of all segments of")
            for value in (None, "7", [7], 7.5, True)
        ],
        *[
            (
                lambda c, value=value: c["annotations"][0]["segments_info"][1].update(id=value),
                rf"segment ids of image 42 must lie in 1..16777215.*Received: \[{value}\]",
            )
            for value in (0, -1, 2**24, 2**40)
        ],
        (
            lambda c: c["annotations"][0]["segments_info"][1].update(category_id="3"),
            "`category_id` of all segments of image 42 must be a whole number. Received: '3' in number 1",
        ),
        (lambda c: c["annotations"][0].update(segments_info=None), "`segments_info` of all annotations must be a list"),
        (lambda c: c["annotations"][0].update(segments_info={"id": 9}), "`segments_info` of all .* must be a list"),
        (lambda c: c["annotations"][0].update(segments_info=[9]), "all segments of image 42 must have id"),
        (lambda c: c["annotations"][0].update(image_id=[42]), "`image_id` of all annotations must be a whole"),
        (lambda c: c["annotations"][0].update(file_name=None), "`file_name` of all annotations must be a text"),
        (lambda c: c["annotations"].append(7), "must have `annotations`, each with `segments_info`"),
        (lambda c: c["images"][0].update(id=None), "`id` of all images must be a whole number or a text"),
        (lambda c: c.update(images=None), "`images`, if at all, as a list"),
        (lambda c: c.update(categories=[7]), "every category must have .* Received: 7"),
        (lambda c: c.update(categories={"id": 3}), "every category must have .* Received: no categories"),
    ],
)
def test_values_of_a_wrong_kind(folder, damage, message):
    damage(folder.content)
    with pytest.raises(ValueError, match=rf"p\.json: .*{message}"):
        folder.read()


def test_other_json_files(folder):
    for content, received in (({"annotations": [{"bbox": []}]}, "annotations"), ([1], "list"), ({"x": 1}, "x")):
        folder.content = content
        with pytest.raises(ValueError, match=rf"p.json: a COCO panoptic file must have `annotations`.*{received}"):
            folder.read()
    (folder.root / "p.json").write_text("{")
    with pytest.raises(ValueError, match=r"p.json: cannot be read as JSON"):
        CocoPanoptic("images", "panoptic", "p.json", root=folder.root)
    folder.content = CONTENT | {"annotations": []}
    with pytest.raises(ValueError, match=r"p.json: the dataset is empty"):
        folder.read()
    folder.content = CONTENT | {"categories": [{"id": 3, "name": "car"}]}
    with pytest.raises(ValueError, match=r"every category must have .*isthing.*'car'"):
        folder.read()


def test_image_of_another_size(folder):
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(folder.root / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"a.jpg with height 2, width 4, and .*a.png with height 2, width 3"):
        folder.read()[0]


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [{"segments_info": [], "file_name": "x.png"}]},
        {"annotations": [{"segments_info": [], "image_id": 1}]},
        {"annotations": [{"segments_info": [{"id": 1}], "image_id": 1, "file_name": "x.png"}]},
        {"annotations": [], "images": [{"file_name": "x.jpg"}]},
        {"annotations": [], "categories": [{"name": "a", "isthing": 1}]},
    ],
)
def test_a_missing_field_is_named(tmp_path, content):
    content = {"images": [], "categories": [{"id": 1, "name": "a", "isthing": 1}], **content}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"panoptic\.json: all .* must have .* Received: number 0 without"):
        CocoPanoptic("images", "maps", "panoptic.json", root=tmp_path)


def test_the_size_of_an_image_where_the_file_states_it(folder):
    assert folder.read().image_size(0) == (2, 3)
    folder.content["images"][0]["width"] = None
    assert folder.read().image_size(0) is None
    del folder.content["images"][0]["width"]
    assert folder.read().image_size(0) is None
