"""COCO-Stuff-10k from MATLAB files of both versions."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from kmaskformer.build_data import build_reader
from kmaskformer.config import load_config
from kmaskformer.data.images import read_label_map
from kmaskformer.data.preparation import coco_stuff
from kmaskformer.data.preparation.conversion import run_tasks

# Version 1.0: 1 unlabeled, 2 person ... 81 toothbrush, 82 the first stuff class ... 172 wood. Version 1.1: COCO's ids.
STORED = {172: np.array([[1, 2, 3], [81, 82, 172]]), 183: np.array([[0, 1, 2], [90, 92, 182]])}
CLASS_IDS = np.array([[255, 1, 2], [90, 92, 182]])


def write_matlab(path, stored, num_names, is_hdf5):
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_hdf5:
        with h5py.File(path, "w") as file:
            file["S"] = stored.T.astype(np.float64)
            file["names"] = np.zeros((1, num_names), np.uint64)
    else:
        names = np.array([[f"class {i}"] for i in range(num_names)], object)
        scipy.io.savemat(path, {"S": stored.astype(np.uint8), "names": names})


@pytest.mark.parametrize("is_hdf5", [True, False])
@pytest.mark.parametrize("num_names", STORED)
def test_class_ids(tmp_path, num_names, is_hdf5):
    path = tmp_path / "a.mat"
    write_matlab(path, STORED[num_names], num_names, is_hdf5)
    np.testing.assert_array_equal(coco_stuff.read_class_map(path), CLASS_IDS)


@pytest.mark.parametrize(("num_names", "value"), [(172, 173), (172, 0), (183, 200)])
def test_numbers_of_another_version_are_refused(tmp_path, num_names, value):
    write_matlab(tmp_path / "a.mat", np.full((2, 3), value), num_names, False)
    with pytest.raises(ValueError, match=rf"a.mat: `S` must hold .*{num_names} names. Received: {value}\.\.{value}"):
        coco_stuff.read_class_map(tmp_path / "a.mat")


def write(root):
    (root / "images").mkdir(parents=True)
    (root / "imageLists").mkdir()
    for split, names in (("train", ("b", "a")), ("test", ("c",))):
        (root / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (3, 2)).save(root / "images" / f"{name}.jpg")
            write_matlab(root / "annotations" / f"{name}.mat", STORED[183], 183, True)
    return root


def test_the_recipe_reads_what_was_converted(tmp_path, repository):
    source, output = write(tmp_path / "source"), tmp_path / "output"
    assert run_tasks(coco_stuff.tasks(source, output), workers=2) == []
    path = repository / "configs/coco_stuff/semantic/maskformer_resnet50.yaml"
    config = load_config(path, [f"data.root={output}"])
    train, test = build_reader(config.data, "train"), build_reader(config.data, "val")
    assert [sample["image_id"] for sample in train] == ["a", "b"] and len(test) == 1
    classes = np.append(test[0]["labels"], -1)[test[0]["segment_map"]]
    np.testing.assert_array_equal(classes, [[-1, 0, 1], [79, 80, 170]])
    np.testing.assert_array_equal(read_label_map(output / "annotations/test/c.png"), CLASS_IDS)


def test_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.txt: no such list"):
        coco_stuff.tasks(tmp_path, tmp_path)
    source = write(tmp_path / "source")
    (source / "annotations/a.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.mat: no such file, which .*train.txt lists"):
        coco_stuff.tasks(source, tmp_path)
