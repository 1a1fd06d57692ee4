"""ADE20K with all its classes: from the colour-coded object masks to 16-bit label maps of the 847 trained classes."""

from __future__ import annotations

import csv
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from kmaskformer.data.images import read_image, read_panoptic_ids
from kmaskformer.data.preparation.conversion import Task, provide
from kmaskformer.whole_files import written_whole

SPLITS = ("training", "validation")
SHORTEST_EDGE = 512
VOID_ID = 65535
_JPEG_QUALITY = 95


def tasks(source: Path, output: Path) -> list[Task]:
    """One task per image of `source`, a folder such as ADE20K_2021_17_01 in which masks `*_seg.png` lie by the images.

    Raises:
        FileNotFoundError: If there are no such images.
    """
    found = [task for split in SPLITS for task in _tasks_of_split(source, output, split)]
    if not found:
        raise FileNotFoundError(
            f"{source}: no images with masks, **/training/**/*.jpg beside *_seg.png. Give the folder that "
            "ADE20K_2021_17_01.zip unpacks to."
        )
    return found


def object_map(numbers: np.ndarray) -> np.ndarray:
    """Numbers in the dataset's list of objects, 0 = none: `R // 10 * 256 + G` of the pixels of a mask.

    Args:
        numbers: `(height, width)` int32, `R + 256 G + 65536 B`.
    """
    return (numbers & 255) // 10 * 256 + (numbers >> 8 & 255)


def class_ids() -> np.ndarray:
    """The class id (uint16, 65535 = void) of each number in the list of objects."""
    text = resources.files("kmaskformer.data").joinpath("labels", "ade20k_full_847.csv").read_text(encoding="utf-8")
    table = np.full(25 * 256 + 256, VOID_ID, np.uint16)
    for row in csv.DictReader(text.splitlines()):
        table[int(row["object"])] = int(row["id"])
    return table


def stored_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with which an image is stored, and scored: the shorter side is 512 at most."""
    shortest = min(height, width)
    if shortest <= SHORTEST_EDGE:
        return height, width
    return round(height / shortest * SHORTEST_EDGE), round(width / shortest * SHORTEST_EDGE)


def _tasks_of_split(source: Path, output: Path, split: str) -> list[Task]:
    images = sorted(path for path in source.glob(f"**/{split}/**/*.jpg") if _mask_of(path).is_file())
    names = [path.stem for path in images]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{source}: image names must occur once in {split}. Received: {len(names)} images, some alike."
        )
    table = class_ids()
    outputs = [(output / "images" / split / f"{n}.jpg", output / "annotations" / split / f"{n}.png") for n in names]
    return [
        Task(str(image), pair, partial(_convert, image, *pair, table), (image, _mask_of(image)))
        for image, pair in zip(images, outputs, strict=True)
    ]


def _mask_of(image: Path) -> Path:
    return image.with_name(f"{image.stem}_seg.png")


def _convert(image_path: Path, image_output: Path, map_output: Path, table: np.ndarray) -> None:
    objects = object_map(read_panoptic_ids(_mask_of(image_path)))
    image = read_image(image_path)
    if image.shape[:2] != objects.shape:
        raise ValueError(f"image and mask must have the same size. Received: {image.shape[:2]} and {objects.shape}")
    size = stored_size(*objects.shape)
    if size == objects.shape:
        provide(image_path, image_output)
    else:
        with written_whole(image_output) as path:
            _bilinear(image, size).save(path, format="JPEG", quality=_JPEG_QUALITY)
    with written_whole(map_output) as path:
        Image.fromarray(table[_nearest(objects, size)]).save(path, format="PNG")


def _bilinear(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Two pixels are mixed along each axis, whatever the scale, as in the published preparation (no antialiasing)."""
    scales = (image.shape[1] / size[1], 0, 0, 0, image.shape[0] / size[0], 0)
    # On integers Pillow would cut fractions off.
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, -1, 0)]
    resized = [one.transform(size[::-1], Image.Transform.AFFINE, scales, Image.Resampling.BILINEAR) for one in channels]
    return Image.fromarray(np.rint(np.stack([np.asarray(one) for one in resized], axis=-1)).astype(np.uint8))


def _nearest(objects: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, objects.shape, strict=True))
    return objects[rows[:, None], columns]
