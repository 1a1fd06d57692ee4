"""A corpus of broken and odd files: what becomes of each is written down here.

`ODD`: files that people have and that must be read, with the value of the first pixel that comes out.
`BROKEN`: files that are refused, with the message; never a silent wrong label.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import kmaskformer as kmf

HEIGHT, WIDTH = 6, 8
PICTURE = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
LABELS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3
CLASSES = ["a", "b", "c"]


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def palette(values, colors):
    image = Image.fromarray(np.asarray(values, np.uint8))
    image.putpalette(colors)
    return image


def huge_png():
    """A PNG of 60 bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


LABEL_PNG = encode(LABELS.astype(np.uint8))
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

# name of the image file, its bytes, the first pixel (RGB) that is read
ODD = {
    "jpeg": ("a.jpg", encode(PICTURE, "JPEG", quality=100), (200, 100, 50)),
    "png that is called jpg": ("a.jpg", encode(PICTURE), (200, 100, 50)),
    "cmyk jpeg": ("a.jpg", encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=100), (200, 100, 50)),
    "palette": ("a.png", encode(palette(LABELS, [9, 8, 7, 1, 1, 1, 2, 2, 2])), (9, 8, 7)),
    "1 bit": ("a.png", encode(Image.fromarray(LABELS == 0)), (255, 255, 255)),
    "16 bit grey": ("a.png", encode(np.full((HEIGHT, WIDTH), 32768, np.uint16)), (128, 128, 128)),
    "alpha": ("a.png", encode(np.dstack([PICTURE, np.zeros((HEIGHT, WIDTH), np.uint8)])), (200, 100, 50)),
    "grey with alpha": ("a.png", encode(np.full((HEIGHT, WIDTH, 2), (70, 0), np.uint8)), (70, 70, 70)),
    "spaces and umlauts in the name": ("mein Bild ä.png", encode(PICTURE), (200, 100, 50)),
    "a name that is no UTF-8": (os.fsdecode(b"bild\xff.png"), encode(PICTURE), (200, 100, 50)),
    "a percent sign, brackets and a star": ("100% [1]*.png", encode(PICTURE), (200, 100, 50)),
    **{
        f"orientation {number}": ("a.png", encode(PICTURE, exif=exif(number)), (200, 100, 50)) for number in range(1, 5)
    },
}

# name of the image file, its bytes, the message
BROKEN_IMAGES = {
    "truncated jpeg": ("a.jpg", encode(NOISE, "JPEG")[:-30], "damaged, incomplete or no image"),
    "truncated png": ("a.png", encode(NOISE)[:-40], "damaged, incomplete or no image"),
    "zero bytes": ("a.png", b"", "in no known image format"),
    "text": ("a.png", b"<html>404</html>", "in no known image format"),
    "huge header": ("a.png", huge_png(), r"a\.png: .*too large.*3600000000 pixels.*limit of \d+ pixels.*Cut it"),
    "floating point": ("a.tif", encode(np.zeros((HEIGHT, WIDTH), np.float32), "TIFF"), "images must hold whole"),
    "another size": ("a.png", encode(PICTURE[:-1]), "same size.*height 5, width 8.*height 6, width 8"),
    "turned on its side": ("a.png", encode(np.rot90(PICTURE).copy()), "same size.*height 8, width 6"),
}

BROKEN_LABELS = {
    "truncated": (LABEL_PNG[:-25], "cannot be read as label map"),
    "zero bytes": (b"", "cannot be read as label map"),
    "colours": (encode(PICTURE), "must have one channel that holds ids. Received: a RGB image"),
    "jpeg": (encode(LABELS.astype(np.uint8), "JPEG"), "must be stored without loss"),
    "lossy webp": (encode(Image.fromarray(PICTURE), "WEBP"), "must be stored without loss"),
    "an unknown class": (encode((LABELS + 5).astype(np.uint8)), r"must hold ids of its 3 classes.*Received: \[5, 6, 7"),
    "an unknown class in 16 bits": (encode((LABELS + 300).astype(np.uint16)), r"Received: \[300, 301, 302\]"),
    "another size": (encode(LABELS[:, 1:].astype(np.uint8)), "same size"),
    "colours with alpha": (encode(np.dstack([PICTURE, LABELS]).astype(np.uint8)), "must have one channel"),
}


def dataset(folder, name="a.png", image=None, labels=LABEL_PNG, **options):
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "images" / name).write_bytes(encode(PICTURE) if image is None else image)
    (folder / "masks" / (os.path.splitext(name)[0] + ".png")).write_bytes(labels)
    return kmf.data.from_folders("images", "masks", CLASSES, root=folder, **options)


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_read(tmp_path, case):
    name, image, pixel = ODD[case]
    sample = dataset(tmp_path, name, image)[0]
    np.testing.assert_allclose(sample["image"][0, 0].astype(int), pixel, atol=2)
    np.testing.assert_array_equal(sample["labels"][sample["segment_map"]], LABELS)


def test_a_grey_label_map_with_alpha_is_read_as_grey(tmp_path):
    labels = encode(np.dstack([LABELS, np.full_like(LABELS, 255)]).astype(np.uint8))
    sample = dataset(tmp_path, labels=labels)[0]
    np.testing.assert_array_equal(sample["labels"][sample["segment_map"]], LABELS)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_sideways_images_with_maps_of_either_kind(tmp_path, orientation):
    """Stored lying down, seen upright; the labels are those of the upright image."""
    image = encode(np.ascontiguousarray(NOISE.transpose(1, 0, 2)), exif=exif(orientation))
    sample = dataset(tmp_path, "a.png", image)[0]
    assert sample["image"].shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(sample["labels"][sample["segment_map"]], LABELS)


@pytest.mark.parametrize("case", BROKEN_IMAGES)
def test_broken_images_are_refused_by_name(tmp_path, case):
    name, image, message = BROKEN_IMAGES[case]
    reader = dataset(tmp_path, name, image)
    with pytest.raises(ValueError, match=message) as caught:
        reader[0]
    assert name in str(caught.value)


@pytest.mark.parametrize("case", BROKEN_LABELS)
def test_broken_label_maps_are_refused_by_name(tmp_path, case):
    labels, message = BROKEN_LABELS[case]
    reader = dataset(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=message) as caught:
        reader[0]
    assert str(tmp_path / "masks" / "a.png") in str(caught.value)


def test_label_maps_with_a_palette_and_one_bit(tmp_path):
    """A palette's indices are the ids, not its colours; one bit is 0 and 1."""
    colored = encode(palette(LABELS, [200, 0, 0, 0, 200, 0, 0, 0, 200]))
    np.testing.assert_array_equal(dataset(tmp_path, labels=colored)[0]["segment_map"], LABELS)
    (tmp_path / "masks" / "a.png").write_bytes(encode(Image.fromarray(LABELS == 1)))
    sample = kmf.data.from_folders("images", "masks", CLASSES, root=tmp_path)[0]
    np.testing.assert_array_equal(sample["labels"][sample["segment_map"]], LABELS == 1)


def test_links_that_loop_are_no_files(tmp_path):
    reader = dataset(tmp_path, "a.png")
    for name in ("loop.png", "images/loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "images/folder").symlink_to(tmp_path / "images", target_is_directory=True)
    assert len(reader) == 1
    reader = kmf.data.from_folders("images", "masks", CLASSES, root=tmp_path, on_error="skip")
    assert [path.name for path in (reader.files(i)[0] for i in range(len(reader)))] == ["a.png", "loop.png"]
    with pytest.raises(FileNotFoundError, match=r"loop\.png: no such image file"):
        reader[1]


TRIANGLE = [[0.0, 0.0, 6.0, 0.0, 0.0, 5.0]]
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 2, "iscrowd": 0, "segmentation": TRIANGLE}],
    "categories": [{"id": 2, "name": "cat"}],
}


def changed(**annotation):
    return {**INSTANCES, "annotations": [{**INSTANCES["annotations"][0], **annotation}]}


def without(key):
    rows = [{name: value for name, value in INSTANCES["annotations"][0].items() if name != key}]
    return {**INSTANCES, "annotations": rows}


BROKEN_JSON = {
    "no JSON": ("{", r"instances\.json: cannot be read as JSON"),
    "a list": ([], "must have the lists `images` and `annotations`"),
    "no image id": (without("image_id"), "without image_id"),
    "no segmentation": (without("segmentation"), "without segmentation"),
    "no category id": (without("category_id"), "without category_id"),
    "an unknown category": (changed(category_id=9), r"unknown categories. Received: category_id \[9\]"),
    "an unknown image": (changed(image_id=5), "image_id 5, which is not listed"),
    "duplicate annotation ids": (
        {**INSTANCES, "annotations": INSTANCES["annotations"] * 2},
        r"annotation id must occur once. Received more than once: \[7\]",
    ),
    "duplicate image ids": ({**INSTANCES, "images": INSTANCES["images"] * 2}, "image id must occur once"),
    "not a number in an outline": (changed(segmentation=[[math.nan, 0, 1, 1, 2, 2]]), "annotation 7: an outline must"),
    "two points": (changed(segmentation=[[0, 0, 1, 1]]), "at least 3 points"),
    "a box for a mask": (changed(segmentation=[], bbox=[0, 0, 2, 2]), "Objects that have a box only cannot be used"),
    "run lengths of another image": (
        changed(segmentation={"size": [4, 4], "counts": [0, 16]}),
        r"annotation 7: run lengths must have the size of the image, .*\(6, 8\). Received: \(4, 4\)",
    ),
    "run lengths that are too short": (
        changed(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 20]}),
        "annotation 7: .*The mask is damaged",
    ),
    "run lengths that are too long": (
        changed(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 20, 100]}),
        "annotation 7: .*The mask is damaged",
    ),
    "a missing image": (
        {**INSTANCES, "images": [{**INSTANCES["images"][0], "file_name": "b.png"}]},
        r"1 image file\(s\) that do not exist, first: .*b\.png",
    ),
    "an image of another size": (
        {**INSTANCES, "images": [{**INSTANCES["images"][0], "height": 60}]},
        r"a\.png.*(60|height)",
    ),
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_broken_instance_files_are_refused_by_name(tmp_path, case):
    content, message = BROKEN_JSON[case]
    (tmp_path / "a.png").write_bytes(encode(PICTURE))
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        kmf.data.from_coco_json(path, tmp_path)[0]
    assert "instances.json" in str(caught.value) or "a.png" in str(caught.value)


def test_boxes_and_areas_of_a_file_are_not_used(tmp_path):
    """A box of NaN does no harm: masks tell where objects are."""
    (tmp_path / "a.png").write_bytes(encode(PICTURE))
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(changed(bbox=[math.nan] * 4, area=math.nan)))
    sample = kmf.data.from_coco_json(path, tmp_path)[0]
    assert sample["labels"].tolist() == [0] and 10 < np.count_nonzero(sample["segment_map"] >= 0) < 20
