"""ADE20K-Full: numbers of objects to class ids, and the stored size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmaskformer.build_data import build_reader
from kmaskformer.config import load_config
from kmaskformer.data.images import read_label_map
from kmaskformer.data.preparation import ade20k_full
from kmaskformer.data.preparation.conversion import run_tasks

WALL, TREE, UNTRAINED = 2978, 2855, 1  # numbers in the list of objects; wall is class 0, tree class 3


def colors(objects, instances=7):
    """The mask in which an image's objects are published."""
    red = objects // 256 * 10
    return np.stack([red, objects % 256, np.full_like(objects, instances)], axis=-1).astype(np.uint8)


def write(root, objects, split="training", name="ADE_train_00000001"):
    folder = root / "images" / "ADE" / split / "urban" / "street"
    folder.mkdir(parents=True, exist_ok=True)
    height, width = objects.shape
    ramp = np.arange(width) * 255 // max(1, width - 1)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3)).astype(np.uint8)
    Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)
    Image.fromarray(colors(objects)).save(folder / f"{name}_seg.png")
    return folder


def test_numbers_of_objects():
    """Red 116 and green 162: 11 * 256 + 162 = 2978, the number of the wall. Tens of red count, units do not."""
    pixels = np.array([[116 + 256 * 162 + 65536 * 9, 110 + 256 * 162, 0]])
    np.testing.assert_array_equal(ade20k_full.object_map(pixels), [[WALL, WALL, 0]])
    table = ade20k_full.class_ids()
    assert [table[number] for number in (WALL, 312, 2420, TREE, 0, UNTRAINED)] == [0, 1, 2, 3, 65535, 65535]
    assert sorted(table[table != 65535]) == list(range(847))


@pytest.mark.parametrize(
    ("size", "stored"),
    [((512, 700), (512, 700)), ((100, 50), (100, 50)), ((1024, 768), (683, 512)), ((1000, 2000), (512, 1024))],
)
def test_the_shorter_side_is_512_at_most(size, stored):
    assert ade20k_full.stored_size(*size) == stored


def test_the_recipe_reads_what_was_converted(tmp_path, repository):
    objects = np.array([[WALL, TREE], [0, UNTRAINED]]).repeat(300, 0).repeat(400, 1)
    source = write(tmp_path / "source", objects).parents[4]
    write(source, objects[:3, 398:402], "validation", "ADE_val_00000001")
    output = tmp_path / "output"
    assert run_tasks(ade20k_full.tasks(source, output), workers=1) == []
    path = repository / "configs/ade20k_full/semantic/maskformer_resnet50.yaml"
    config = load_config(path, [f"data.root={output}"])
    (large,), (small,) = build_reader(config.data, "train"), build_reader(config.data, "val")
    assert large["image"].shape == (512, 683, 3) and small["image"].shape == (3, 4, 3)
    classes = np.append(large["labels"], -1)[large["segment_map"]]
    assert large["labels"].tolist() == [0, 3] and (classes[256:] == -1).all()
    assert (classes[:256, :341] == 0).all() and (classes[:256, 342:] == 3).all()
    ramp = large["image"][100, :, 0].astype(int)
    assert np.abs(ramp - np.arange(683) * 255 / 682).max() < 3 and ramp[0] < 3 and ramp[-1] > 252
    stored = read_label_map(output / "annotations/validation/ADE_val_00000001.png")
    np.testing.assert_array_equal(stored, [[0, 0, 3, 3]] * 3)


def test_bilinear_mixes_two_pixels_and_rounds():
    """Eight columns to three: centres 0.83, 3.5 and 6.17; by hand."""
    row = np.array([0, 10, 20, 30, 45, 50, 60, 70], np.uint8)
    image = np.broadcast_to(row[None, :, None], (8, 8, 3))
    resized = np.asarray(ade20k_full._bilinear(image, (3, 3)))
    assert resized[0, :, 0].tolist() == [8, 38, 62] and (resized == resized[:1, :, :1]).all()


def test_nearest_takes_the_pixel_at_or_before():
    halves = np.arange(8).repeat(128).reshape(1, -1).repeat(1024, 0)
    assert ade20k_full._nearest(np.arange(8)[None].repeat(8, 0), (4, 4))[0].tolist() == [0, 2, 4, 6]
    assert ade20k_full._nearest(halves, (512, 512)).shape == (512, 512)


def test_wrong_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images with masks, .*ADE20K_2021_17_01.zip"):
        ade20k_full.tasks(tmp_path, tmp_path / "output")
    folder = write(tmp_path, np.full((4, 4), WALL))
    Image.new("L", (4, 4)).save(folder / "ADE_train_00000001_seg.png")
    (failure,) = run_tasks(ade20k_full.tasks(tmp_path, tmp_path / "output"), workers=1)
    assert failure.name.endswith("ADE_train_00000001.jpg") and "must be RGB" in failure.reason
    Image.new("RGB", (5, 4)).save(folder / "ADE_train_00000001_seg.png")
    (failure,) = run_tasks(ade20k_full.tasks(tmp_path, tmp_path / "output"), workers=1)
    assert "image and mask must have the same size. Received: (4, 4) and (4, 5)" in failure.reason
