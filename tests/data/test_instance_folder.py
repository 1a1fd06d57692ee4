"""Folders of images with instance maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.instance_folder import InstanceFolder
from kmaskformer.structures import DatasetInfo

CELLS = DatasetInfo("cells", ("background", "cell"), thing_ids=(1,))
STREET = DatasetInfo("street", ("road", "car", "person"), (1, 2), dataset_ids=(7, 24, 26))


@pytest.fixture()
def make(tmp_path):
    """Writes an instance map with its image and returns the reader's file arguments."""

    def write(ids: np.ndarray, suffix: str = "png") -> dict:
        Image.fromarray(np.zeros((*ids.shape, 3), np.uint8)).save(tmp_path / "image.jpg")
        Image.fromarray(ids).save(tmp_path / f"ids.{suffix}")
        return {"images": ["image.jpg"], "labels": [f"ids.{suffix}"], "root": tmp_path}

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_class_with_background(make, dtype):
    files = make(np.array([[0, 7, 7], [0, 200, 7]], dtype))
    sample = InstanceFolder(**files, info=CELLS, background="background")[0]
    np.testing.assert_array_equal(sample["segment_map"], [[0, 1, 1], [0, 2, 1]])
    np.testing.assert_array_equal(sample["labels"], [0, 1, 1])
    assert sample["segment_map"].dtype == np.int32 and not sample["is_crowd"].any()


def test_background_is_void_unless_named(make):
    files = make(np.array([[0, 7, 7], [0, 200, 7]], np.uint8))
    sample = InstanceFolder(**files, info=CELLS)[0]
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 0, 0], [-1, 1, 0]])
    np.testing.assert_array_equal(sample["labels"], [1, 1])


def test_nothing_but_background(make):
    sample = InstanceFolder(**make(np.zeros((2, 2), np.uint8)), info=CELLS)[0]
    assert sample["labels"].shape == (0,) and (sample["segment_map"] == -1).all()


def test_class_divisor_and_large_ids(make):
    files = make(np.array([[7000, 26001, 26002], [24000, 0, 255999]], np.int32), "tiff")
    sample = InstanceFolder(**files, info=STREET, class_divisor=1000)[0]
    np.testing.assert_array_equal(sample["segment_map"], [[0, 2, 3], [1, -1, -1]])
    np.testing.assert_array_equal(sample["labels"], [0, 1, 2, 2])
    files = make(np.array([[7000000, 26000001]], np.int32), "tiff")
    sample = InstanceFolder(**files, info=STREET, class_divisor=10**6)[0]
    np.testing.assert_array_equal(sample["segment_map"], [[0, 1]])


def test_unknown_class(make):
    reader = InstanceFolder(**make(np.array([[7000, 99001]], np.int32), "tiff"), info=STREET, class_divisor=1000)
    with pytest.raises(ValueError, match=r"ids.tiff: id // 1000 must be a class id of 'street'.*\[99001\]"):
        reader[0]


def test_negative_ids(make):
    with pytest.raises(ValueError, match=r"ids.tiff: instance ids must not be negative. Received: -5"):
        InstanceFolder(**make(np.array([[-5]], np.int32), "tiff"), info=CELLS)[0]


def test_bad_arguments(make):
    files = make(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"`class_divisor` must be positive.*class_divisor=0.*'car', 'person'"):
        InstanceFolder(**files, info=STREET)
    with pytest.raises(ValueError, match=r"`background` must name a stuff class of 'cells' \(background\).*'cell'"):
        InstanceFolder(**files, info=CELLS, background="cell")
    with pytest.raises(FileNotFoundError, match="dataset is empty"):
        InstanceFolder("*.bmp", "{stem}.png", CELLS, root=files["root"])
