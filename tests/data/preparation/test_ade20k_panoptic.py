"""ADE20K panoptic from semantic and instance maps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from kmaskformer.build_data import build_reader
from kmaskformer.config import load_config
from kmaskformer.data.images import read_label_map
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.preparation import ade20k_panoptic
from kmaskformer.data.preparation.conversion import run_tasks

# Semantic ids: 1 wall, 3 sky, 8 bed (the first thing), 13 person. Among the things, bed is 1 and person 4.
CLASSES = np.array([[1, 1, 3, 3], [8, 8, 13, 13], [8, 1, 13, 0]])
THINGS = np.array([[0, 0, 0, 0], [1, 1, 4, 4], [1, 0, 0, 0]])
NUMBERS = np.array([[0, 0, 0, 0], [1, 2, 3, 3], [1, 0, 0, 0]])
INSTANCES = THINGS + 256 * NUMBERS


def write(root, classes=CLASSES, instances=INSTANCES, name="ADE_train_00000001"):
    for split in ade20k_panoptic.SPLITS:
        for folder in ("images", "annotations", "annotations_instance"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", classes.shape[::-1]).save(root / "images" / split / f"{name}.jpg")
        Image.fromarray(classes.astype(np.uint8)).save(root / "annotations" / split / f"{name}.png")
        colors = np.stack([instances % 256, instances // 256, instances * 0], axis=-1).astype(np.uint8)
        Image.fromarray(colors).save(root / "annotations_instance" / split / f"{name}.png")
    return root


def convert(source, output):
    failures = run_tasks(ade20k_panoptic.tasks(source, output), workers=1)
    ade20k_panoptic.finish(source, output)
    return failures


def test_things_are_numbered_as_in_the_instance_challenge():
    info = label_space("ade20k_150")
    assert [info.dataset_ids[i] for i in info.thing_ids[:4]] == [8, 9, 11, 13]
    assert [info.class_names[i].split(",")[0] for i in info.thing_ids[:2]] == ["bed", "window"]


def test_segments():
    segment_map, table = ade20k_panoptic.panoptic_map(CLASSES, INSTANCES)
    np.testing.assert_array_equal(segment_map, [[1, 1, 2, 2], [3, 4, 5, 5], [3, 1, 0, 0]])
    assert [(row["id"], row["category_id"], row["area"]) for row in table] == [
        (1, 1, 3), (2, 3, 2), (3, 8, 2), (4, 8, 1), (5, 13, 2),
    ]  # fmt: skip
    assert table[0]["bbox"] == [0, 0, 2, 3] and table[4]["bbox"] == [2, 1, 2, 1]
    assert not any(row["iscrowd"] for row in table)


def test_an_instance_wins_over_stuff_and_over_another_class():
    segment_map, table = ade20k_panoptic.panoptic_map(np.full((1, 3), 1), np.array([[0, 4 + 256, 4 + 256]]))
    np.testing.assert_array_equal(segment_map, [[1, 2, 2]])
    assert [row["category_id"] for row in table] == [1, 13]


def test_void_only():
    segment_map, table = ade20k_panoptic.panoptic_map(np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert not segment_map.any() and table == []


@pytest.mark.parametrize(
    ("classes", "instances", "message"),
    [
        (CLASSES, INSTANCES + 101, "red must be the number of a thing class, 0..100. Received: 105"),
        (CLASSES + 150, INSTANCES, r"the classes lie in 0\.\.150"),
        (CLASSES[:2], INSTANCES, r"one size.*\(2, 4\) and \(3, 4\)"),
    ],
)
def test_maps_that_are_something_else(classes, instances, message):
    with pytest.raises(ValueError, match=message):
        ade20k_panoptic.panoptic_map(classes, instances)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_recipe_reads_what_was_converted(tmp_path, repository, in_place):
    source = write(tmp_path / "source")
    output = source if in_place else tmp_path / "output"
    assert convert(source, output) == []
    path = repository / "configs/ade20k/panoptic/maskformer_resnet50.yaml"
    (sample,) = reader = build_reader(load_config(path, [f"data.root={output}"]).data, "train")
    assert reader.info.thing_ids == label_space("ade20k_150").thing_ids
    assert reader.info.class_names == label_space("ade20k_150").class_names
    np.testing.assert_array_equal(sample["segment_map"], [[0, 0, 1, 1], [2, 3, 4, 4], [2, 0, -1, -1]])
    assert sample["labels"].tolist() == [0, 2, 7, 7, 12] and sample["image_id"] == "ADE_train_00000001"


def test_missing_and_damaged_maps(tmp_path):
    source = write(write(tmp_path), name="ADE_train_00000002")
    damaged = source / "annotations_instance/training/ADE_train_00000002.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    (failure,) = convert(source, source)
    assert failure.name.endswith("images/training/ADE_train_00000002.jpg") and str(damaged) in failure.reason
    rows = json.loads((source / "panoptic_training.json").read_text())["annotations"]
    assert [row["image_id"] for row in rows] == ["ADE_train_00000001"]
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match=r"ADE_train_00000002.png: no such map.*annotations_instance.tar"):
        ade20k_panoptic.tasks(source, source)
    with pytest.raises(FileNotFoundError, match=r"images/training: no \*.jpg"):
        ade20k_panoptic.tasks(tmp_path / "none", source)


def test_an_output_that_was_cut_off_is_made_anew(tmp_path):
    source = write(tmp_path)
    assert convert(source, source) == []
    output = source / "panoptic/training/ADE_train_00000001.png"
    content, tables = output.read_bytes(), (source / "panoptic_training.json").read_text()
    output.write_bytes(content[:60])
    assert convert(source, source) == []
    assert output.read_bytes() == content and (source / "panoptic_training.json").read_text() == tables
    (source / "panoptic/training/stray.png").write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"stray\.png: is no PNG of this conversion.*Take it out"):
        ade20k_panoptic.finish(source, source)


def test_stuff_of_the_official_sample(shared_folder, tmp_path):
    """Three validation images, with instance maps that hold nothing: all stuff, pixel by pixel, and things void."""
    sample = shared_folder / "conformance/ade20k_sample3"
    for split in ade20k_panoptic.SPLITS:
        shutil.copytree(sample / "images", tmp_path / "images" / split)
        shutil.copytree(sample / "annotations", tmp_path / "annotations" / split)
        (tmp_path / "annotations_instance" / split).mkdir(parents=True)
        for path in (sample / "annotations").glob("*.png"):
            Image.new("RGB", Image.open(path).size).save(tmp_path / "annotations_instance" / split / path.name)
    assert convert(tmp_path, tmp_path) == []
    info = label_space("ade20k_150")
    content = json.loads((tmp_path / "panoptic_validation.json").read_text())
    for row in content["annotations"]:
        classes = read_label_map(sample / "annotations" / row["file_name"])
        expected = {i + 1: int((classes == i + 1).sum()) for i in info.stuff_ids if (classes == i + 1).any()}
        assert {segment["category_id"]: segment["area"] for segment in row["segments_info"]} == expected
