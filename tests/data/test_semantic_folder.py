"""Folders of images with semantic labels: pairing, ids, void, and every mistake a folder can hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.semantic_folder import SemanticFolder
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("a", "b", "c"), ignore_value=11)
LABELS = np.array([[0, 0, 2, 2], [11, 2, 255, 0]], np.uint8)


@pytest.fixture()
def folder(tmp_path):
    """Three images of 2 by 4 pixels with labels."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for index in range(3):
        Image.fromarray(np.full((2, 4, 3), 40 * index, np.uint8)).save(tmp_path / f"images/x_part{index}.png")
        Image.fromarray(LABELS).save(tmp_path / f"labels/x_part{index}.png")
    return tmp_path


def test_sample(folder):
    reader = SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=folder)
    assert len(reader) == 3
    sample = reader[1]
    assert sample["image"].shape == (2, 4, 3) and sample["image"].max() == 40
    np.testing.assert_array_equal(sample["segment_map"], [[0, 0, 1, 1], [-1, 1, -1, 0]])
    np.testing.assert_array_equal(sample["labels"], [0, 2])
    np.testing.assert_array_equal(sample["is_crowd"], [False, False])
    assert sample["image_id"] == "x_part1"
    assert sample["segment_map"].dtype == sample["labels"].dtype == np.int32
    assert [sample["image_id"] for sample in reader] == ["x_part0", "x_part1", "x_part2"]


def test_dataset_ids_are_mapped(folder):
    """ADE20K's convention: 0 is unlabelled, classes from 1."""
    Image.fromarray(np.array([[0, 1, 2, 3]] * 2, np.uint8)).save(folder / "labels/x_part0.png")
    info = DatasetInfo("toy", ("a", "b", "c"), ignore_value=0, dataset_ids=(1, 2, 3))
    sample = SemanticFolder("images/*0.png", "labels/{stem}.png", info, root=folder)[0]
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 0, 1, 2]] * 2)
    np.testing.assert_array_equal(sample["labels"], [0, 1, 2])


def test_16_bit_labels_may_use_255(folder):
    """In a dataset of more than 255 classes, 255 is a class and 65535 is void."""
    info = DatasetInfo("many", tuple(f"c{i}" for i in range(300)), ignore_value=65535)
    Image.fromarray(np.array([[255, 299, 65535, 0]] * 2, np.uint16)).save(folder / "labels/x_part0.png")
    sample = SemanticFolder("images/*0.png", "labels/{stem}.png", info, root=folder)[0]
    np.testing.assert_array_equal(sample["labels"], [0, 255, 299])
    np.testing.assert_array_equal(sample["segment_map"][0], [1, 2, -1, 0])


def test_patterns_lists_and_limit(folder):
    assert len(SemanticFolder("images/*_part[12].png", "labels/{stem}.png", INFO, root=folder)) == 2
    assert len(SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=folder, limit=2)) == 2
    listed = SemanticFolder(["images/x_part2.png"], ["labels/x_part0.png"], INFO, root=folder)
    assert listed[0]["image"].max() == 80
    nested = SemanticFolder("**/*part0.png", "labels/{stem}.png", INFO, root=folder)
    assert [pair.image_id for pair in nested.pairs] == ["images/x_part0.png", "labels/x_part0.png"]
    by_folder = SemanticFolder("images/*.png", "{folder}/../labels/{stem}.png", INFO, root=folder)
    assert len(by_folder) == 3


def test_root_with_glob_characters(folder, tmp_path):
    odd = tmp_path / "[data] *"
    (folder / "images").rename(folder / "kept")
    odd.mkdir()
    (folder / "kept").rename(odd / "images")
    (folder / "labels").rename(odd / "labels")
    assert len(SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=odd)) == 3


def test_label_outside_the_class_list(folder):
    Image.fromarray(np.array([[0, 3, 3, 200]] * 2, np.uint8)).save(folder / "labels/x_part1.png")
    reader = SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=folder)
    with pytest.raises(ValueError, match=r"x_part1.png: .*'toy' .*3 classes \(0..2\).*Received: \[3, 200\] \(6 pixels"):
        reader[1]


def test_label_ids_out_of_range(folder):
    Image.fromarray(np.array([[-1, 0, 0, 0]] * 2, np.int32)).save(folder / "labels/x.tiff")
    reader = SemanticFolder(["images/x_part0.png"], ["labels/x.tiff"], INFO, root=folder)
    with pytest.raises(ValueError, match=r"x.tiff: class ids must lie in 0..65535. Received: -1..0"):
        reader[0]


def test_empty_dataset(folder):
    with pytest.raises(FileNotFoundError, match=r"dataset is empty: no file matches 'images/\*.jpg'"):
        SemanticFolder("images/*.jpg", "labels/{stem}.png", INFO, root=folder)
    with pytest.raises(FileNotFoundError, match=r"`root` must be an existing folder. Received: .*nowhere"):
        SemanticFolder("images/*.jpg", "labels/{stem}.png", INFO, root=folder / "nowhere")


def test_image_without_label(folder):
    (folder / "labels/x_part1.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 images have no label map, first: .*x_part1.png expects .*labels"
    ):
        SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=folder)


def test_patterns_that_cannot_work(folder):
    with pytest.raises(ValueError, match=r"must contain \{stem\}.*labels='labels/\*.png'"):
        SemanticFolder("images/*.png", "labels/*.png", INFO, root=folder)
    with pytest.raises(ValueError, match=r"one file per image \(3\). Received: 1"):
        SemanticFolder("images/*.png", ["labels/x_part0.png"], INFO, root=folder)


def test_sizes_that_differ_name_both_files(folder):
    Image.fromarray(LABELS[:, :3]).save(folder / "labels/x_part0.png")
    with pytest.raises(
        ValueError, match=r"images/x_part0.png with height 2, width 4.*labels/x_part0.png with .*width 3"
    ):
        SemanticFolder("images/*.png", "labels/{stem}.png", INFO, root=folder)[0]
