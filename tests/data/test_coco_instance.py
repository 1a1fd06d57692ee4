"""The COCO instance format, whole and damaged."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from PIL import Image

from kmaskformer.build import build_evaluators
from kmaskformer.build_data import build_dataset, build_reader
from kmaskformer.config import config_from_dict
from kmaskformer.data.coco_instance import CocoInstances
from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.data.sources import from_coco_json
from kmaskformer.evaluation.evaluator import Truth
from kmaskformer.structures import DatasetInfo

SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]  # rows and columns 1 to 3
CROWD = np.zeros((6, 8), bool)
CROWD[4:, 5:] = True
CONTENT = {
    "images": [
        {"id": 7, "file_name": "b.png", "height": 6, "width": 8},
        {"id": 42, "file_name": "a.png", "height": 6, "width": 8},
    ],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 90, "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 2, "image_id": 42, "category_id": 3, "segmentation": [[2, 2, 6, 2, 6, 3, 2, 3]], "iscrowd": 0},
        {"id": 3, "image_id": 42, "category_id": 3, "segmentation": encode_mask(CROWD), "iscrowd": 1},
    ],
}
MASKS = np.zeros((3, 6, 8), bool)
MASKS[0, 1:4, 1:4] = True
MASKS[1, 2, 2:6] = True
MASKS[2] = CROWD


class Folder:
    """A dataset of two images, one of them without objects, whose JSON a test may damage."""

    def __init__(self, root):
        self.root, self.content = root, copy.deepcopy(CONTENT)
        (root / "images").mkdir()
        for name in "ab":
            Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).save(root / "images" / f"{name}.png")

    def read(self, **options):
        (self.root / "i.json").write_text(json.dumps(self.content))
        return CocoInstances("images", "i.json", root=self.root, **options)

    def error(self, kind=ValueError):
        with pytest.raises(kind) as caught:
            list(self.read())
        assert str(self.root / "i.json") in str(caught.value)
        return str(caught.value)


@pytest.fixture()
def folder(tmp_path):
    return Folder(tmp_path)


def dense(sample):
    return np.pad(sample["membership"], [(0, 0), (1, 0)])[:, sample["segment_map"] + 1]


def test_overlaps_are_kept(folder):
    reader = folder.read()
    assert reader.info == DatasetInfo("i", ("car", "dog"), (0, 1), dataset_ids=(3, 90))
    empty, sample = reader
    assert empty["labels"].shape == (0,) and empty["membership"].shape == (0, 0) and empty["image_id"] == "7"
    np.testing.assert_array_equal(dense(sample), MASKS)
    assert sample["labels"].tolist() == [1, 0, 0] and sample["is_crowd"].tolist() == [False, False, True]
    assert sample["segment_map"].dtype == np.int32 and sample["image_id"] == "42"
    assert reader.files(1) == (folder.root / "images" / "a.png", folder.root / "i.json")


def test_info_and_limit(folder):
    info = DatasetInfo("mine", ("dog", "car"), (0, 1), dataset_ids=(90, 3))
    reader = folder.read(info=info, limit=1)
    assert len(reader) == 1 and reader.info is info
    assert folder.read(info=info)[1]["labels"].tolist() == [0, 1, 1]


def test_classes_of_a_list_are_things(folder):
    """Names alone do not tell; instances are things, from Python and from a configuration."""
    folder.read()
    reader = from_coco_json(folder.root / "i.json", folder.root / "images", classes={3: "auto", 90: "hund"})
    assert reader.info.class_names == ("auto", "hund") and reader.info.thing_ids == (0, 1)
    (folder.root / "classes.json").write_text('[{"id": 3, "name": "auto"}, {"id": 90, "name": "hund"}]')
    reader = build_reader(data_config(folder, classes="classes.json").data, "train")
    assert reader.info.class_names == ("auto", "hund") and reader.info.thing_ids == (0, 1)
    one = DatasetInfo("mine", ("car", "dog"), (1,), dataset_ids=(3, 90))
    assert folder.read(info=one).info is one


def test_a_file_may_call_categories_stuff(folder):
    folder.content["categories"][0]["isthing"] = 0
    assert folder.read().info.thing_ids == (0,)


def test_masks_of_an_image_that_is_stored_lying_down(folder):
    """The size tells that the outlines belong to the stored pixels: the map is turned like the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder.root / "images" / "a.png", exif=exif)
    sample = folder.read()[1]
    assert sample["image"].shape == (8, 6, 3)
    np.testing.assert_array_equal(dense(sample), np.rot90(MASKS, -1, axes=(1, 2)))


DAMAGED = {
    "no images": (lambda c: c.pop("images"), "must have the lists `images` and `annotations`"),
    "empty": (lambda c: c.update(images=[], annotations=[]), "the dataset is empty"),
    "no size": (lambda c: c["images"][0].pop("height"), "all images must have id, file_name, height, width. Received"),
    "no categories": (lambda c: c.pop("categories"), "`categories` must list the classes"),
    "category without name": (lambda c: c["categories"][0].pop("name"), "number 0 without name"),
    "repeated category": (lambda c: c["categories"].append(c["categories"][0]), "must not repeat"),
    "no category": (lambda c: c["annotations"][0].pop("category_id"), "number 0 without category_id"),
    "box only": (lambda c: c["annotations"][0].pop("segmentation"), "without segmentation"),
    "no outline": (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 1: `segmentation` must be"),
    "two points": (
        lambda c: c["annotations"][0].update(segmentation=[SQUARE[:4]]),
        "annotation 1: an outline must be .* at least 3 points",
    ),
    "odd": (lambda c: c["annotations"][0].update(segmentation=[SQUARE[:7]]), "7 numbers"),
    "nan": (lambda c: c["annotations"][0].update(segmentation=[[*SQUARE[:7], float("nan")]]), "nan"),
    "text": (lambda c: c["annotations"][0].update(segmentation=["abc"]), "outlines must hold numbers"),
    "run lengths too short": (
        lambda c: c["annotations"][2].update(segmentation={"size": [6, 8], "counts": [3, 4]}),
        "annotation 3: Run lengths must add up to the mask's size.*48. Received: .*7",
    ),
    "run lengths of another size": (
        lambda c: c["annotations"][2].update(segmentation={"size": [8, 6], "counts": [48]}),
        r"annotation 3: run lengths must have the size of the image, .*\(6, 8\). Received: \(8, 6\)",
    ),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=5), r"image 42 .*category_id \[5\]"),
    "unknown image": (
        lambda c: c["annotations"][0].update(image_id=5),
        "annotation 1: `images` must list .*image_id 5",
    ),
    "repeated image": (lambda c: c["images"].append(c["images"][0]), "image id must occur once"),
    "repeated annotation": (lambda c: c["annotations"].append(c["annotations"][0]), "annotation id must occur once"),
    "a crowd of another kind": (
        lambda c: c["annotations"][1].update(iscrowd="0"),
        "annotation 2: `iscrowd` must be 0, 1, true or false. Received: '0'",
    ),
    "a crowd of two": (lambda c: c["annotations"][1].update(iscrowd=2), "Received: 2"),
    "an unknown crowd": (lambda c: c["annotations"][1].update(iscrowd=None), "Received: None"),
    "an annotation that is none": (lambda c: c["annotations"].insert(0, 7), "all annotations must have id"),
    "categories that are no list": (lambda c: c.update(categories={"id": 3}), "`categories` must list the classes"),
    "category in quotes": (
        lambda c: c["annotations"][1].update(category_id="3"),
        "`category_id` of all annotations must be a whole number. Received: '3' in number 1: .*'id': 2",
    ),
    "category of null": (lambda c: c["annotations"][1].update(category_id=None), "Received: None in number 1"),
    "category list": (lambda c: c["annotations"][1].update(category_id=[3]), r"Received: \[3\] in number 1"),
    "category true": (lambda c: c["annotations"][1].update(category_id=True), "Received: True in number 1"),
    "image list": (lambda c: c["annotations"][1].update(image_id=[42]), "`image_id` of all .* or a text. Received: "),
    "id list": (lambda c: c["annotations"][1].update(id=[2]), "`id` of all annotations must be a whole number or"),
    "image id null": (lambda c: c["images"][1].update(id=None), "`id` of all images must be a whole number or a text"),
    "file name null": (lambda c: c["images"][1].update(file_name=None), "`file_name` of all images must be a text"),
    "height in quotes": (lambda c: c["images"][1].update(height="6"), "`height` of all images must be a whole number"),
    "width 0": (lambda c: c["images"][1].update(width=0), r"image 42: height and width must be positive.*\(6, 0\)"),
    **{
        f"run lengths {counts}": (
            lambda c, counts=counts: c["annotations"][2].update(segmentation={"size": [6, 8], "counts": counts}),
            "annotation 3: run lengths must have `counts`, a text or a list of whole numbers",
        )
        for counts in (None, 48, [None], ["48"], [47.5, 0.5], [2**70], {"a": 1})
    },
    **{
        f"size {size}": (
            lambda c, size=size: c["annotations"][2].update(segmentation={"size": size, "counts": [48]}),
            "annotation 3: run lengths must have .*`size`, height and width. Received",
        )
        for size in (None, 48, [48], ["6", "8"])
    },
    **{
        f"an outline at {place}": (
            lambda c, place=place: c["annotations"][0].update(segmentation=[[0, 0, place, 0, 0, 3]]),
            "annotation 1: an outline must lie in its image, of height 6 and width 8, or near it. Received: ",
        )
        for place in (1e8, -1e8, 1e300, 81)
    },
    "an outline of a number that is too long": (
        lambda c: c["annotations"][0].update(segmentation=[[0, 0, 10**400, 0, 0, 3]]),
        "annotation 1: outlines must hold numbers",
    ),
    "panoptic file": (lambda c: c["annotations"][0].update(segments_info=[]), "COCO panoptic file"),
    "other image size": (lambda c: c["images"][1].update(height=5), "annotation 3: run lengths must have the size"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(folder, case):
    damage, message = DAMAGED[case]
    damage(folder.content)
    assert re.search(message, folder.error())


def test_an_outline_may_reach_out_of_its_image(folder):
    folder.content["annotations"][0]["segmentation"] = [[-60, -60, 80, -60, 80, 3, -60, 3]]
    np.testing.assert_array_equal(dense(folder.read()[1])[0], np.arange(6)[:, None].repeat(8, axis=1) < 3)


def test_crowds_may_be_true_and_false_or_left_out(folder):
    folder.content["annotations"][0]["iscrowd"] = True
    folder.content["annotations"][1]["iscrowd"] = False
    del folder.content["annotations"][2]["iscrowd"]
    assert folder.read()[1]["is_crowd"].tolist() == [True, False, False]


def test_missing_files(folder):
    (folder.root / "images" / "b.png").unlink()
    assert re.search(
        r"names 1 image file\(s\) that do not exist, first: .*images/b.png", folder.error(FileNotFoundError)
    )
    with pytest.raises(FileNotFoundError, match=r"none.json: no such annotation file"):
        CocoInstances("images", "none.json", root=folder.root)
    (folder.root / "i.json").write_text("{")
    with pytest.raises(ValueError, match=r"i.json: cannot be read as JSON"):
        CocoInstances("images", "i.json", root=folder.root)


def test_image_of_another_size(folder):
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(folder.root / "images" / "a.png")
    assert "a.png with height 6, width 9, and" in folder.error()


def data_config(folder, **values):
    folder.read()
    split = {"images": "images", "annotations": "i.json"}
    data = {"source": "coco_instance", "root": str(folder.root), "train": split, "val": split, "batch_size": 2}
    return config_from_dict({"data": data | values, "evaluation": {"metrics": ["instance"]}})


@pytest.mark.parametrize("fixed", [False, True])
def test_training_batches_hold_dense_masks(folder, fixed):
    options = {"max_segments": 4, "augmentation": {"crop": [6, 8], "horizontal_flip": False}} if fixed else {}
    if not fixed:
        options = {"augmentation": {"horizontal_flip": False}}
    dataset = build_dataset(data_config(folder, **options).data, "train")
    if fixed:
        assert dataset.element_spec[1]["masks"].shape == (2, 4, 6, 8)
    _, targets = next(iter(dataset.as_numpy_iterator()))
    (row,) = np.flatnonzero(targets["valid"].any(axis=1))
    np.testing.assert_array_equal(targets["masks"][row, :2], MASKS[:2])  # the crowd is no example
    assert targets["valid"][row].sum() == 2 and not targets["masks"][1 - row].any()


def test_evaluation_sees_the_overlaps(folder):
    """Predictions equal to the truth are perfect; with the common pixels cut away, one mask is left above 0.75."""
    config = data_config(folder)
    dataset = build_dataset(config.data, "val")
    (evaluator,) = build_evaluators(config.evaluation)
    evaluator.bind(dataset.dataset_info)
    for masks, expected in ((MASKS[:2], 1.0), (MASKS[:2] & ~MASKS[1::-1], 0.5)):
        evaluator.reset()
        for _, targets in dataset.as_numpy_iterator():
            truth = Truth.of_batch(targets, 0)
            predictions = {
                "masks": masks,
                "category_ids": np.array([1, 0]),
                "scores": np.array([0.9, 0.8]),
                "boxes": np.array([[1, 1, 4, 4], [2, 2, 6, 3]]),
                "areas": masks.sum(axis=(1, 2)),
                "valid": np.array([len(truth.labels) > 0] * 2),
            }
            evaluator.update(predictions, truth)
        assert evaluator.result()["instance/AP75"] == pytest.approx(expected)


def test_the_converted_panoptic_sample(shared_folder):
    """Official panoptic truth in the instance format: the masks are those of the PNGs."""
    root = shared_folder / "conformance/panopticapi_sample"
    reader = CocoInstances("input_images", "panoptic_coco_detection_format.json", root=root)
    assert len(reader) == 2 and sum(len(sample["labels"]) for sample in reader) == 50
    content = json.loads((root / "panoptic_coco_detection_format.json").read_text())
    areas = {row["image_id"]: [] for row in content["annotations"]}
    for row in content["annotations"]:
        areas[row["image_id"]].append(row["area"])
    for sample in reader:
        np.testing.assert_array_equal(dense(sample).sum(axis=(1, 2)), areas[int(sample["image_id"])])


def test_nuclei(shared_folder):
    """Run lengths and instance maps of one dataset describe the same nuclei."""
    root = shared_folder / "data/dsb2018_nuclei/val"
    config = config_from_dict(
        {
            "data": {
                "source": "coco_instance",
                "root": str(root),
                "val": {"images": "images", "annotations": "instances_coco.json"},
            }
        }
    )
    reader = build_reader(config.data, "val")
    assert len(reader) == 50
    for index in (0, 17, 49):
        sample = reader[index]
        name = reader._entries[index].image.stem
        ids = np.asarray(Image.open(root / "instances" / f"{name}.png"))
        assert len(sample["labels"]) == len(np.unique(ids)) - 1
        np.testing.assert_array_equal(sample["segment_map"] >= 0, ids > 0)
