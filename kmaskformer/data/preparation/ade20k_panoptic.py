"""ADE20K panoptic: stuff from the semantic maps, things from the maps of the instance challenge."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from kmaskformer.data import coco_json
from kmaskformer.data.images import read_label_map, read_panoptic_ids
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.preparation.conversion import Task
from kmaskformer.whole_files import written_whole

SPLITS = ("training", "validation")
_SEGMENTS = "segments_info"


def tasks(source: Path, output: Path) -> list[Task]:
    """One task per image: a panoptic PNG, which holds its own segment table until `finish` collects the tables.

    Args:
        source: A folder with `images`, `annotations` and `annotations_instance`, and in each `training` and
            `validation`.
        output: Where `panoptic/training/*.png` and so on go; may be `source`.

    Raises:
        FileNotFoundError: If a map is missing.
    """
    return [task for split in SPLITS for task in _tasks_of_split(source, output, split)]


def finish(source: Path, output: Path) -> None:
    """Writes `panoptic_training.json` and `panoptic_validation.json`, and makes the images known beside them."""
    for split in SPLITS:
        paths = sorted((output / "panoptic" / split).glob("[!.]*.png"))
        with written_whole(output / f"panoptic_{split}.json") as path:
            path.write_text(json.dumps(_content(paths)), encoding="utf-8")
    images = output / "images"
    if images.is_symlink() and not images.exists():  # to a download that was moved since
        images.unlink()
    if not images.exists():
        os.symlink((source / "images").resolve(), images, target_is_directory=True)


def panoptic_map(classes: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The segments of an image.

    Args:
        classes: `(height, width)` semantic map, 1..150, 0 = void.
        instances: `(height, width)` int32, `R + 256 G + 65536 B` of the instance map: red is the number of the thing
            class among the things, 1..100, green the number of the instance, both 0 outside.

    Returns:
        `(height, width)` ids from 1, 0 = void, and the table in COCO's form. Pixels of a thing class that are in no
        instance are void.
    """
    info = label_space("ade20k_150")
    stuff_ids, thing_ids = (np.asarray(info.dataset_ids)[list(ids)] for ids in (info.stuff_ids, info.thing_ids))
    things, numbers = instances & 255, instances >> 8 & 255
    if things.max() > len(thing_ids):
        raise ValueError(f"red must be the number of a thing class, 0..{len(thing_ids)}. Received: {things.max()}")
    if classes.shape != things.shape or not 0 <= classes.min() <= classes.max() <= info.num_classes:
        raise ValueError(
            f"both maps must have one size, and the classes lie in 0..{info.num_classes}. Received: {classes.shape}"
            f" and {things.shape}, classes {classes.min()}..{classes.max()}"
        )
    # Keys of stuff lie below those of things: class, or 256 * (class + 1) + number of the instance.
    keys = np.where(np.isin(classes, stuff_ids), classes, 0)
    thing_classes = np.append(0, thing_ids)[things]
    keys = np.where(things > 0, 256 * (thing_classes + 1) + numbers, keys)
    values, rows, areas = np.unique(keys, return_inverse=True, return_counts=True)
    ids = np.cumsum(values > 0) * (values > 0)
    category_ids = np.where(values < 256, values, values // 256 - 1)
    segment_map = ids[rows.reshape(keys.shape)]
    columns = zip(ids.tolist(), category_ids.tolist(), areas.tolist(), strict=True)
    table = [
        {"id": i, "category_id": c, "area": a, "bbox": _box(segment_map == i), "iscrowd": 0} for i, c, a in columns if i
    ]
    return segment_map, table


def _tasks_of_split(source: Path, output: Path, split: str) -> list[Task]:
    images = sorted((source / "images" / split).glob("*.jpg"))
    if not images:
        raise FileNotFoundError(f"{source / 'images' / split}: no *.jpg. Unpack ADEChallengeData2016.zip and give it.")
    found = []
    for image in images:
        maps = [source / folder / split / f"{image.stem}.png" for folder in ("annotations", "annotations_instance")]
        for path in maps:
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such map, which {image} needs. `annotations_instance` is a download of its own, "
                    "annotations_instance.tar of the ADE20K instance challenge."
                )
        target = output / "panoptic" / split / f"{image.stem}.png"
        found.append(Task(str(image), (target,), partial(_convert, *maps, target), tuple(maps)))
    return found


def _convert(class_path: Path, instance_path: Path, target: Path) -> None:
    segment_map, table = panoptic_map(read_label_map(class_path), read_panoptic_ids(instance_path))
    colors = np.stack([segment_map % 256, segment_map // 256, segment_map * 0], axis=-1).astype(np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text(_SEGMENTS, json.dumps(table))
    with written_whole(target) as path:
        Image.fromarray(colors).save(path, format="PNG", pnginfo=text)


def _content(paths: list[Path]) -> dict[str, Any]:
    categories = coco_json.categories(label_space("ade20k_150"))
    images, annotations = [], []
    for path in paths:
        size, table = _size_and_table(path)
        images.append({"id": path.stem, "file_name": f"{path.stem}.jpg", "width": size[0], "height": size[1]})
        annotations.append({"image_id": path.stem, "file_name": path.name, "segments_info": table})
    return {"images": images, "annotations": annotations, "categories": categories}


def _size_and_table(path: Path) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """Width and height of a converted PNG, and the segment table that it holds."""
    try:
        with Image.open(path) as image:
            return image.size, json.loads(image.text[_SEGMENTS])
    # Pillow raises many kinds of errors on broken files, SyntaxError among them.
    except Exception as error:
        raise ValueError(
            f"{path}: is no PNG of this conversion ({type(error).__name__}: {error}). Take it out of the folder."
        ) from error


def _box(mask: np.ndarray) -> list[int]:
    """Left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1]
