"""Reader of the COCO instance format: a JSON with one outline or run-length mask per object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.data import coco_json
from kmaskformer.data import images as image_files
from kmaskformer.data.arguments import refuse_negative
from kmaskformer.data.info import read_info
from kmaskformer.data.overlaps import regions_of_masks
from kmaskformer.data.polygons import polygon_mask
from kmaskformer.data.run_lengths import decode_mask
from kmaskformer.structures import DatasetInfo, Sample

Shape = Mapping[str, Any] | tuple[np.ndarray, ...]
"""Run lengths, or the outlines of an object's parts."""
_FARTHEST = 10
"""How far from the image's corner an outline may lie, in lengths of the longer side."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One image; `size` is height and width, all after it are in the order of the annotations."""

    image: Path
    image_id: str
    size: tuple[int, int]
    annotation_ids: tuple[Any, ...]
    labels: np.ndarray
    is_crowd: np.ndarray
    shapes: tuple[Shape, ...]


class CocoInstances:
    """COCO images with instances: outlines, run lengths and crowds; overlaps are kept.

    Samples have a map of regions and `membership` (see `structures.Sample`), as a pixel may be in several objects.
    Outlines are filled as COCO's official tool fills them. Images without annotations are samples without segments.
    Boxes and areas of the file are not used.

    Args:
        images: Folder of the images; their names are those in the JSON.
        annotations: The JSON file.
        info: The label space; by default that of the JSON's categories, contiguous ids in the order of the ids. All
            classes are things where it names none, or where no `isthing` of the JSON says otherwise.
        root: Folder to which the paths refer.
        limit: Only the first `limit` images, in the order of the JSON's `images`; 0 for all.

    Raises:
        FileNotFoundError: If the JSON or an image is missing.
        ValueError: If the JSON is damaged, repeats an id, names an unknown category or has an object without a mask.

    Example:
        >>> reader = CocoInstances("val2017", "annotations/instances_val2017.json", root="/data/coco")
    """

    has_overlaps = True

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        info: DatasetInfo | None = None,
        root: str | Path = ".",
        limit: int = 0,
    ) -> None:
        refuse_negative(limit=limit)
        self._path = Path(root) / annotations
        content = _load(self._path)
        self.info = _with_things(info) if info else _info(content, self._path)
        objects = self._by_image(content)
        rows = content["images"][:limit] if limit else content["images"]
        self._entries = [self._entry(row, Path(root) / images, objects[row["id"]]) for row in rows]
        if not self._entries:
            raise ValueError(f"{self._path}: the dataset is empty, `images` lists no image.")
        coco_json.require_files(self._path, "image", [entry.image for entry in self._entries])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        regions, membership = regions_of_masks(self._masks(entry), *entry.size)
        where = f"{self._path} (image {entry.image_id})"
        image, segment_map = image_files.read_pair(entry.image, where, read_map=lambda _: regions)
        return Sample(
            image=image,
            segment_map=segment_map,
            membership=membership,
            labels=entry.labels,
            is_crowd=entry.is_crowd,
            image_id=entry.image_id,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: image and annotations."""
        return (self._entries[index].image, self._path)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, as the file states them."""
        return self._entries[index].size

    def _masks(self, entry: _Entry) -> Iterator[np.ndarray]:
        for annotation_id, shape in zip(entry.annotation_ids, entry.shapes, strict=True):
            if isinstance(shape, tuple):
                yield polygon_mask(shape, *entry.size)
                continue
            if tuple(shape["size"]) != entry.size:
                raise ValueError(
                    f"{self._where(annotation_id)}: run lengths must have the size of the image, (height, width) = "
                    f"{entry.size}. Received: {tuple(shape['size'])}. Correct the file."
                )
            try:
                yield decode_mask(shape)
            except ValueError as error:
                raise ValueError(f"{self._where(annotation_id)}: {error}. The mask is damaged.") from error

    def _by_image(self, content: dict[str, Any]) -> dict[Any, list[dict]]:
        """The annotations of each image, those of images that are not listed refused."""
        objects: dict[Any, list[dict]] = {row["id"]: [] for row in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in objects:
                raise ValueError(
                    f"{self._where(annotation['id'])}: `images` must list every annotated image. Received: image_id "
                    f"{annotation['image_id']!r}, which is not listed."
                )
            objects[annotation["image_id"]].append(annotation)
        return objects

    def _entry(self, row: dict[str, Any], folder: Path, objects: list[dict]) -> _Entry:
        size = (row["height"], row["width"])
        if min(size) < 1:
            raise ValueError(
                f"{self._path}: image {row['id']}: height and width must be positive. Received: {size}. Correct it."
            )
        return _Entry(
            image=folder / row["file_name"],
            image_id=str(row["id"]),
            size=size,
            annotation_ids=tuple(one["id"] for one in objects),
            labels=coco_json.labels(objects, self.info, f"{self._path}: image {row['id']} has objects"),
            is_crowd=coco_json.crowds(objects, f"{self._path}: annotation"),
            shapes=tuple(_shape(one["segmentation"], size, self._where(one["id"])) for one in objects),
        )

    def _where(self, annotation_id: Any) -> str:
        return f"{self._path}: annotation {annotation_id}"


def _shape(segmentation: Any, size: tuple[int, int], where: str) -> Shape:
    """The mask of an annotation in a form that is small in memory; `size` is that of the image."""
    if isinstance(segmentation, Mapping) and {"counts", "size"} <= set(segmentation):
        return _run_lengths(segmentation, where)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(
            f"{where}: `segmentation` must be a list of outlines or run lengths. Received: {str(segmentation)[:100]}. "
            "Objects that have a box only cannot be used: take them out of the file."
        )
    try:
        outlines = tuple(np.asarray(outline, np.float64) for outline in segmentation)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: outlines must hold numbers ({error}).") from error
    for outline in outlines:
        if outline.ndim != 1 or outline.size % 2 or outline.size < 6 or not np.isfinite(outline).all():
            raise ValueError(
                f"{where}: an outline must be a flat list of x and y of at least 3 points, [x0, y0, x1, y1, ...]. "
                f"Received: {str(outline.tolist())[:100]} ({outline.size} numbers). Correct the file."
            )
        # Every step along an outline is a place in memory.
        if np.abs(outline).max() > _FARTHEST * max(size):
            raise ValueError(
                f"{where}: an outline must lie in its image, of height {size[0]} and width {size[1]}, or near it. "
                f"Received: {outline.min():g}..{outline.max():g}. Correct the file; coordinates are pixels."
            )
    return outlines


def _run_lengths(segmentation: Mapping[str, Any], where: str) -> Shape:
    counts, size = segmentation["counts"], segmentation["size"]
    is_text = isinstance(counts, str)
    if not (is_text or _are_whole(counts)) or not _are_whole(size) or len(size) != 2:
        raise ValueError(
            f"{where}: run lengths must have `counts`, a text or a list of whole numbers, and `size`, height and "
            f"width. Received: {str(dict(segmentation))[:100]}. Correct the file."
        )
    return segmentation


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and abs(value) < 2**31 for value in values)


def _load(path: Path) -> dict[str, Any]:
    content = coco_json.load(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise ValueError(
            f"{path}: a COCO instance file must have the lists `images` and `annotations`. Received: "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}."
        )
    first = next(iter(content["annotations"]), None)
    if isinstance(first, dict) and "segments_info" in first:
        raise ValueError(
            f"{path}: this is a COCO panoptic file, where an instance file (`instances_*.json`) is expected. Read it "
            "with the source coco_panoptic."
        )
    coco_json.require_fields(path, "images", content["images"], ("id", "file_name", "height", "width"))
    fields = ("id", "image_id", "category_id", "segmentation")
    coco_json.require_fields(path, "annotations", content["annotations"], fields)
    key = (int, str)
    coco_json.require_types(path, "images", content["images"], id=key, file_name=str, height=int, width=int)
    coco_json.require_types(path, "annotations", content["annotations"], id=key, image_id=key, category_id=int)
    coco_json.refuse_repeated(path, "image id", [row["id"] for row in content["images"]])
    coco_json.refuse_repeated(path, "annotation id", [row["id"] for row in content["annotations"]])
    return content


def _with_things(info: DatasetInfo) -> DatasetInfo:
    """The label space, whose classes are all things if it names none: names alone do not tell, and instances are."""
    return info if info.thing_ids else dataclasses.replace(info, thing_ids=tuple(range(info.num_classes)))


def _info(content: dict[str, Any], path: Path) -> DatasetInfo:
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise ValueError(
            f"{path}: `categories` must list the classes, each with `id` and `name`. Add it or pass `info`."
        )
    coco_json.require_fields(path, "categories", categories, ("id", "name"))
    try:
        return read_info([{"isthing": 1, **category} for category in categories], name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
