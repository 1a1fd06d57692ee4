"""The readers on real datasets; every number is counted again from the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.coco_panoptic import CocoPanoptic
from kmaskformer.data.info import read_info
from kmaskformer.data.instance_folder import InstanceFolder
from kmaskformer.data.semantic_folder import SemanticFolder
from kmaskformer.structures import DatasetInfo


def class_pixels(samples, num_classes):
    """Pixels per class, summed over samples."""
    total = np.zeros(num_classes, np.int64)
    for sample in samples:
        areas = np.bincount(sample["segment_map"].ravel() + 1, minlength=len(sample["labels"]) + 1)[1:]
        np.add.at(total, sample["labels"], areas)
    return total


def counted(paths, num_classes):
    """The same from label PNGs."""
    return sum(np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256) for path in paths)[:num_classes]


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_camvid(shared_folder, split, count):
    root = shared_folder / "data/camvid_240x180" / split
    info = read_info(root.parent / "classes.json")
    assert info.num_classes == 11 and info.ignore_value == 11
    reader = SemanticFolder("images/*.jpg", "labels/{stem}.png", info, root=root)
    assert len(reader) == count
    np.testing.assert_array_equal(class_pixels(reader, 11), counted(sorted(root.glob("labels/*.png")), 11))
    assert reader[0]["image"].shape == (180, 240, 3)


def test_dubai(shared_folder):
    root = shared_folder / "data/dubai_aerial"
    info = read_info(root / "classes.json")
    assert info.colors[0] == (0x3C, 0x10, 0x98)
    readers = [SemanticFolder(f"images/*_part{part}.jpg", "labels/{stem}.png", info, root) for part in ("[1-5]", "6")]
    assert [len(reader) for reader in readers] == [40, 8]
    np.testing.assert_array_equal(class_pixels(readers[1], 5), counted(sorted(root.glob("labels/*_part6.png")), 5))


@pytest.mark.parametrize(("split", "count"), [("train", 250), ("val", 50)])
def test_nuclei(shared_folder, split, count):
    root = shared_folder / "data/dsb2018_nuclei" / split
    info = DatasetInfo("nuclei", ("background", "nucleus"), (1,))
    reader = InstanceFolder("images/*.png", "instances/{stem}.png", info, root, background="background")
    assert len(reader) == count
    maps = [np.asarray(Image.open(path)) for path in sorted(root.glob("instances/*.png"))]
    samples = list(reader)
    assert sum(len(sample["labels"]) for sample in samples) == sum(len(np.unique(ids)) for ids in maps)
    expected = [sum((ids == 0).sum() for ids in maps), sum((ids > 0).sum() for ids in maps)]
    np.testing.assert_array_equal(class_pixels(samples, 2), expected)
    annotations = json.loads((root / "instances_coco.json").read_text())["annotations"]
    assert len(annotations) == sum(int(sample["labels"].sum()) for sample in samples)


def table_pixels(content, info):
    """Pixels per class by the areas in the JSON."""
    total = np.zeros(info.num_classes, np.int64)
    for row in content["annotations"]:
        for segment in row["segments_info"]:
            total[info.dataset_ids.index(segment["category_id"])] += segment["area"]
    return total


@pytest.mark.parametrize(
    ("folder", "names", "count", "crowds"),
    [
        ("data/coco_panoptic_train100", ("images", "panoptic", "panoptic.json"), 100, 6),
        ("conformance/panopticapi_sample", ("input_images", "panoptic_examples", "panoptic_examples.json"), 2, 3),
    ],
)
def test_coco_panoptic(shared_folder, folder, names, count, crowds):
    root = shared_folder / folder
    reader = CocoPanoptic(*names, root=root)
    assert len(reader) == count
    assert (reader.info.num_classes, len(reader.info.thing_ids)) == (133, 80)
    assert reader.info.class_names[0] == "person" and reader.info.dataset_ids[-1] == 200
    samples = list(reader)
    assert sum(int(sample["is_crowd"].sum()) for sample in samples) == crowds
    content = json.loads((root / names[2]).read_text())
    assert sum(len(sample["labels"]) for sample in samples) == sum(
        len(row["segments_info"]) for row in content["annotations"]
    )
    np.testing.assert_array_equal(class_pixels(samples, 133), table_pixels(content, reader.info))


def test_ade20k_labels_start_at_one(shared_folder):
    root = shared_folder / "conformance/ade20k_sample3"
    names = tuple(f"class {index}" for index in range(1, 151))
    info = DatasetInfo("ade20k", names, ignore_value=0, dataset_ids=tuple(range(1, 151)))
    reader = SemanticFolder("images/*.jpg", "annotations/{stem}.png", info, root)
    assert len(reader) == 3
    expected = counted(sorted(root.glob("annotations/*.png")), 151)[1:]
    np.testing.assert_array_equal(class_pixels(reader, 150), expected)


def test_cityscapes_panoptic_with_own_info(shared_folder):
    root = shared_folder / "conformance/cityscapes_format_deeplab2"
    name = "gtFine/cityscapes_panoptic_dummy_trainId"
    content = json.loads((root / f"{name}.json").read_text())
    names = tuple(f"class {index}" for index in range(19))
    info = DatasetInfo("cityscapes", names, tuple(range(11, 19)))
    reader = CocoPanoptic("leftImg8bit/{image_id}_leftImg8bit.png", name, f"{name}.json", info=info, root=root)
    sample = reader[0]
    np.testing.assert_array_equal(class_pixels([sample], 19), table_pixels(content, info))
    assert sample["is_crowd"].sum() == 1 and sample["image_id"] == "dummy_000000_000000"
