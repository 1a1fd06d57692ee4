"""Prediction files in the formats of the official tools.

- COCO panoptic: one JSON with `annotations` of `image_id`, `file_name`, `segments_info`, and a folder of RGB PNGs whose
  pixels hold `R + 256 G + 65536 B` = segment id, 0 = void.
- Semantic: a folder of one-channel PNGs.
- COCO instances: one JSON list of `image_id`, `category_id`, `score`, run-length `segmentation`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kmaskformer.data import coco_json
from kmaskformer.data.coco_json import is_integer
from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.evaluation.joint_runs import joint_runs
from kmaskformer.json_files import read_json
from kmaskformer.structures import DatasetInfo


class PanopticFile(NamedTuple):
    """What a COCO panoptic JSON says: `annotations` by image id, `categories` (may be empty), and where it lies."""

    path: Path
    folder: Path
    annotations: dict[Any, dict[str, Any]]
    categories: list[dict[str, Any]]

    def png(self, image_id: Any) -> Path:
        """The PNG of an image: the file of the annotation, or of its stem where that is the name of the photograph."""
        named = self.folder / self.annotations[image_id]["file_name"]
        found = (path for path in (named, named.with_suffix(".png")) if path.is_file())
        return next(found, named)


def read_panoptic_file(path: str | Path, folder: str | Path | None = None) -> PanopticFile:
    """Reads a COCO panoptic JSON.

    Args:
        path: The JSON.
        folder: Folder of its PNGs; by default the JSON's path without `.json`.

    Returns:
        Its annotations and categories; PNGs are read one by one, by `data.images.read_panoptic_ids`.

    Raises:
        FileNotFoundError: If the JSON or the folder is missing.
        ValueError: If the file is no COCO panoptic JSON, or has two annotations of one image.
    """
    path = Path(path)
    folder = path.with_suffix("") if folder is None else Path(folder)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(
            f"{path}: expected a COCO panoptic JSON, an object with `annotations`. Received: other content"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of panoptic PNGs for {path}; name it explicitly")
    annotations: dict[Any, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        _check_annotation(annotation, path)
        if annotation["image_id"] in annotations:
            raise ValueError(
                f"{path}: each image needs one annotation. Received: several of image_id {annotation['image_id']!r}"
            )
        annotations[annotation["image_id"]] = annotation
    return PanopticFile(path, folder, annotations, content.get("categories", []))


def _check_annotation(annotation: Any, path: Path) -> None:
    keys = sorted(annotation) if isinstance(annotation, dict) else type(annotation).__name__
    absent = [key for key in ("image_id", "file_name", "segments_info") if key not in keys]
    if absent:
        raise ValueError(
            f"{path}: each panoptic annotation needs image_id, file_name and segments_info; one lacks "
            f"{', '.join(absent)}. Received keys: {keys}; instance files are not panoptic files."
        )
    if not isinstance(annotation["image_id"], int | str) or not isinstance(annotation["file_name"], str):
        raise ValueError(
            f"{path}: `image_id` must be a number or text and `file_name` text. "
            f"Received: image_id={annotation['image_id']!r}, file_name={annotation['file_name']!r}"
        )
    if not isinstance(annotation["segments_info"], list):
        raise ValueError(
            f"{path}: `segments_info` must be a list, empty where there are no segments. "
            f"Received: {annotation['segments_info']!r} of image_id {annotation['image_id']!r}"
        )
    for segment in annotation["segments_info"]:
        _check_segment(segment, f"of image_id {annotation['image_id']!r}", path)


def _check_segment(segment: Any, where: str, path: Path) -> None:
    if not isinstance(segment, dict) or not all(is_integer(segment.get(key)) for key in ("id", "category_id")):
        raise ValueError(
            f"{path}: each segment needs whole numbers `id` and `category_id`. Received: {segment} {where}"
        )
    if not 0 <= segment["id"] < 2**24:
        raise ValueError(f"{path}: ids of segments must lie in 0..{2**24 - 1}. Received: {segment['id']} {where}")
    if segment.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"{path}: `iscrowd` must be 0 or 1. Received: {segment['iscrowd']!r} {where}")
    area = segment.get("area", 0)
    if not is_integer(area) and not (isinstance(area, float) and area.is_integer()):
        raise ValueError(f"{path}: `area` must be a whole number of pixels, or left out. Received: {area!r} {where}")


def info_of_categories(categories: Sequence[Mapping[str, Any]], name: str = "coco") -> DatasetInfo:
    """The dataset record of a COCO `categories` list: contiguous ids in the order of the category ids.

    Args:
        categories: Dicts with `id`, and optionally `name` and `isthing` (1 where missing, as in instance files).
        name: Name of the dataset.

    Raises:
        ValueError: If the list is empty.
    """
    if not categories:
        raise ValueError("`categories` must list at least one category, with its `id` and `name`. Received: none")
    ordered = sorted(categories, key=lambda category: category["id"])
    names = [str(category.get("name", category["id"])) for category in ordered]
    repeated = {label for label in names if names.count(label) > 1}
    return DatasetInfo(
        name=name,
        class_names=tuple(
            f"{label} {category['id']}" if label in repeated else label
            for label, category in zip(names, ordered, strict=True)
        ),
        thing_ids=tuple(i for i, category in enumerate(ordered) if category.get("isthing", 1)),
        dataset_ids=tuple(category["id"] for category in ordered),
    )


class UniqueNames:
    """The names of the images that have been written: a second image must not be taken for the first."""

    def __init__(self) -> None:
        self._names: dict[int | str, str] = {}

    def add(self, name: str, written: int | str) -> None:
        """Takes in an image's name.

        Args:
            name: The name.
            written: What stands for it in the files.

        Raises:
            ValueError: If the same stands for an earlier image.
        """
        if written in self._names:
            raise ValueError(
                f"Each image needs a name of its own. Received: {name!r} after {self._names[written]!r}, and both are "
                f"{written!r} in the files written; rename one of the files"
            )
        self._names[written] = name


class PanopticWriter:
    """Writes predictions in the COCO panoptic format, image by image.

    Args:
        path: JSON to write; `save` writes it.
        info: Gives the dataset's own category ids and the `categories` entry.
        folder: Folder for the PNGs; by default the JSON's path without `.json`.
    """

    def __init__(self, path: str | Path, info: DatasetInfo, folder: str | Path | None = None) -> None:
        self.path = Path(path)
        self.folder = self.path.with_suffix("") if folder is None else Path(folder)
        self.info = info
        self._annotations: list[dict[str, Any]] = []
        self._names = UniqueNames()
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, image_id: str, segmentation: np.ndarray, segments: Iterable[Mapping[str, Any]]) -> None:
        """Writes one image's PNG and keeps its annotation.

        Args:
            image_id: Name of the image; digits become a number in the JSON, as the official tool expects.
            segmentation: `(height, width)` ids, 0 = void, below 2**24.
            segments: Dicts with `id` and contiguous `category_id`.

        Raises:
            ValueError: If an earlier image has the same id or the same PNG (`a/x` and `a_x`), an id is too large, a
                class id is none, or map and segments do not name the same ids.
        """
        segments = list(segments)
        self._check(image_id, segmentation, segments)
        stem = str(image_id).replace("/", "_")
        self._names.add(str(image_id), file_id(stem))
        file_name = f"{stem}.png"
        write_panoptic_png(self.folder / file_name, segmentation)
        infos = [_segment_info(segment, segmentation, self.info) for segment in segments]
        self._annotations.append({"image_id": file_id(image_id), "file_name": file_name, "segments_info": infos})

    def _check(self, image_id: str, segmentation: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> None:
        """Refuses what the official tool would refuse once all has been written."""
        wrong = [s["category_id"] for s in segments if not 0 <= s["category_id"] < self.info.num_classes]
        if wrong:
            raise ValueError(
                f"Segments of image {image_id!r} must have contiguous class ids 0..{self.info.num_classes - 1}. "
                f"Received: {wrong[:5]}"
            )
        listed, found = {int(segment["id"]) for segment in segments}, ids_in(segmentation) - {0}
        if listed != found:
            raise ValueError(
                f"Map and segments of image {image_id!r} must name the same ids, besides 0 for void. "
                f"Received: {sorted(found - listed)[:5]} in the map, {sorted(listed - found)[:5]} in `segments` alone"
            )

    def save(self) -> Path:
        """Writes the JSON and returns its path."""
        images = [{"id": a["image_id"], "file_name": a["file_name"]} for a in self._annotations]
        content = {"images": images, "annotations": self._annotations, "categories": coco_json.categories(self.info)}
        self.path.write_text(json.dumps(content), encoding="utf-8")
        return self.path


def ids_in(segmentation: np.ndarray) -> set[int]:
    """The values of a `(height, width)` map of integers."""
    values, _, _ = joint_runs(segmentation, segmentation)
    return set(values.tolist())


def write_panoptic_png(path: str | Path, segmentation: np.ndarray) -> None:
    """Writes `(height, width)` segment ids, 0..2**24-1, as the RGB PNG of the COCO panoptic format."""
    ids = np.asarray(segmentation)
    if ids.size and (ids.min() < 0 or ids.max() >= 2**24):
        raise ValueError(f"Segment ids must lie in 0..{2**24 - 1}. Received: {ids.min()}..{ids.max()} for {path}")
    channels = np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path)


def write_label_map(path: str | Path, labels: np.ndarray, dataset_ids: Sequence[int] | None = None) -> None:
    """Writes a map of class ids as a one-channel PNG, of 8 bits where they suffice, else of 16.

    Args:
        path: PNG to write; its folder is made.
        labels: `(height, width)` contiguous class ids.
        dataset_ids: If given, class `i` is written as `dataset_ids[i]`; test servers expect the dataset's own ids.

    Raises:
        ValueError: If an id of the map, or what is to be written for it, does not fit into 16 bits, or an id has no
            entry in `dataset_ids`.
    """
    labels = np.asarray(labels)
    highest = 65535 if dataset_ids is None else len(dataset_ids) - 1
    if labels.size and (labels.min() < 0 or labels.max() > highest):
        raise ValueError(f"Class ids must lie in 0..{highest}. Received: {labels.min()}..{labels.max()} for {path}")
    values = labels if dataset_ids is None else np.asarray(dataset_ids)[labels]
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(
            f"Ids in a label map must lie in 0..65535. Received: {values.min()}..{values.max()} from `dataset_ids` for "
            f"{path}; give the classes other dataset ids"
        )
    dtype = np.uint8 if not values.size or values.max() < 256 else np.uint16
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)


def instance_record(image_id: str, category_id: int, score: float, mask: np.ndarray) -> dict[str, Any]:
    """One entry of a COCO instance result list.

    It has no `bbox`: pycocotools takes the box from the mask. Where a box is given, it would sort objects into
    small, medium and large by the box's area instead of the mask's.

    Args:
        image_id: Name of the image; digits become a number.
        category_id: The dataset's own category id.
        score: Confidence, 0..1.
        mask: `(height, width)` bool.

    Raises:
        ValueError: If the score is not finite, which JSON cannot say and no order has a place for.
    """
    if not math.isfinite(score):
        raise ValueError(f"The score of an instance must be a finite number. Received: {score} of image {image_id!r}")
    return {
        "image_id": file_id(image_id),
        "category_id": int(category_id),
        "score": float(score),
        "segmentation": encode_mask(mask),
    }


def write_instances(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a COCO instance result file of `instance_record` entries."""
    Path(path).write_text(json.dumps(list(records)), encoding="utf-8")


def read_instances(path: str | Path) -> list[dict[str, Any]]:
    """Reads a COCO instance result file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not a list of results.
    """
    records = read_json(path)
    needed = {"image_id", "category_id", "score"}
    if not isinstance(records, list) or not all(isinstance(r, dict) and needed <= set(r) for r in records):
        raise ValueError(
            f"{path}: expected a COCO result JSON, a list of objects with image_id, category_id, score and "
            "segmentation. Received: other content"
        )
    return records


def file_id(image_id: Any) -> int | str:
    """The image id as COCO files have it: a number where it is made of digits."""
    # Not `isdigit`, which accepts "²", and that is no number to `int`.
    return int(image_id) if str(image_id).isdecimal() else str(image_id)


def _segment_info(segment: Mapping[str, Any], segmentation: np.ndarray, info: DatasetInfo) -> dict[str, Any]:
    area = segment.get("area")
    return {
        "id": int(segment["id"]),
        "category_id": int(info.dataset_ids[int(segment["category_id"])]),
        "area": int(np.count_nonzero(segmentation == segment["id"]) if area is None else area),
        "iscrowd": 0,
    }
