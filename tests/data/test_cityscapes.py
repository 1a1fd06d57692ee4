"""Cityscapes' own files, semantic and panoptic."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer.build_data import build_reader
from kmaskformer.config import load_config
from kmaskformer.data.cityscapes import Cityscapes
from kmaskformer.data.coco_panoptic import CocoPanoptic
from kmaskformer.data.images import read_panoptic_ids
from kmaskformer.data.label_spaces import label_space
from kmaskformer.structures import DatasetInfo

FRAME = "aachen_000000_000019"
# unlabelled, road, ground (void), sky, a group of cars, two cars, a bus, a caravan (void), undrawn
IDS = np.array([[0, 7, 7, 6, 23], [26, 26001, 26002, 28000, 29001], [255, 26, 26002, 26002, 7]])
CLASSES = np.array([[-1, 0, 0, -1, 10], [13, 13, 13, 15, -1], [-1, 13, 13, 13, 0]])


def write(root, ids=IDS, frame=FRAME, kind="gtFine", split="train"):
    city = frame.partition("_")[0]
    for folder, name, content in (
        ("leftImg8bit", f"{frame}_leftImg8bit.png", np.full((*ids.shape, 3), 90, np.uint8)),
        (kind, f"{frame}_{kind}_instanceIds.png", ids.astype(np.uint16)),
        (kind, f"{frame}_{kind}_labelIds.png", np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)),
        (kind, f"{frame}_{kind}_color.png", np.zeros((*ids.shape, 3), np.uint8)),
    ):
        path = root / folder / split / city / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)
    return root


def test_semantic(tmp_path):
    (sample,) = Cityscapes("leftImg8bit/train", "gtFine/train", root=write(tmp_path))
    assert sample["labels"].tolist() == [0, 10, 13, 15] and not sample["is_crowd"].any()
    np.testing.assert_array_equal(np.append(sample["labels"], -1)[sample["segment_map"]], CLASSES)
    assert sample["image_id"] == FRAME and sample["segment_map"].dtype == sample["labels"].dtype == np.int32


def test_panoptic(tmp_path):
    (sample,) = Cityscapes("leftImg8bit/train", "gtFine/train", panoptic=True, root=write(tmp_path))
    assert sample["labels"].tolist() == [0, 10, 13, 13, 13, 15]
    assert sample["is_crowd"].tolist() == [False, False, True, False, False, False]
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 0, 0, -1, 1], [2, 3, 4, 5, -1], [-1, 2, 4, 4, 0]])


def test_a_label_space_of_ones_own(tmp_path):
    """Caravans count, and nothing else."""
    info = DatasetInfo("caravans", ("caravan",), (0,), dataset_ids=(29,))
    (sample,) = Cityscapes("leftImg8bit/train", "gtFine/train", True, info, write(tmp_path))
    assert sample["labels"].tolist() == [0]
    np.testing.assert_array_equal(sample["segment_map"] == 0, IDS == 29001)


def test_coarse_labels_limit_and_order(tmp_path):
    for frame in ("ulm_000001_000019", "bonn_000003_000019", "bonn_000001_000019"):
        write(tmp_path, frame=frame, kind="gtCoarse", split="train_extra")
    reader = Cityscapes("leftImg8bit/train_extra", "gtCoarse/train_extra", root=tmp_path, limit=2)
    assert [sample["image_id"] for sample in reader] == ["bonn_000001_000019", "bonn_000003_000019"]
    assert [path.name for path in reader.files(1)] == [
        "bonn_000003_000019_leftImg8bit.png",
        "bonn_000003_000019_gtCoarse_labelIds.png",
    ]


def test_wrong_files(tmp_path):
    write(tmp_path, np.where(IDS == 28000, 40, IDS))
    with pytest.raises(ValueError, match=r"_gtFine_labelIds.png: ids must be .*0\.\.33.* Received: \[40\]"):
        Cityscapes("leftImg8bit/train", "gtFine/train", root=tmp_path)[0]
    next(tmp_path.glob("gtFine/*/*/*_labelIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"gtFine/train: no files <city>/\*_labelIds.png. Unpack"):
        Cityscapes("leftImg8bit/train", "gtFine/train", root=tmp_path)
    write(tmp_path, frame="bonn_000001_000019")
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 images have no \*_labelIds.png .*first: .*{FRAME}"):
        Cityscapes("leftImg8bit/train", "gtFine/train", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/val: no files"):
        Cityscapes("leftImg8bit/val", "gtFine/val", root=tmp_path)


@pytest.mark.parametrize(("task", "segments"), [("semantic", 4), ("panoptic", 6)])
def test_the_recipes_read_the_download(repository, tmp_path, task, segments):
    path = repository / "configs" / "cityscapes" / task / "maskformer_resnet101.yaml"
    config = load_config(path, [f"data.root={write(tmp_path, split='val')}"])
    (sample,) = build_reader(config.data, "val")
    assert len(sample["labels"]) == segments


def test_segments_are_those_of_the_official_conversion(shared_folder, tmp_path):
    """The ids in a converted PNG are those of the file it was made from."""
    root = shared_folder / "conformance/cityscapes_format_deeplab2"
    name = "gtFine/cityscapes_panoptic_dummy_trainId"
    info = DatasetInfo("train ids", label_space("cityscapes_19").class_names, tuple(range(11, 19)))
    official = CocoPanoptic("leftImg8bit/{image_id}_leftImg8bit.png", name, f"{name}.json", info=info, root=root)[0]
    row = json.loads((root / f"{name}.json").read_text())["annotations"][0]
    write(tmp_path, read_panoptic_ids(root / name / row["file_name"]), "dummy_000000_000000")
    (sample,) = Cityscapes("leftImg8bit/train", "gtFine/train", panoptic=True, root=tmp_path)
    for key in ("segment_map", "labels", "is_crowd"):
        np.testing.assert_array_equal(sample[key], official[key])
