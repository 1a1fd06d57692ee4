"""Reader of the COCO panoptic format: a JSON with segment tables, and PNGs with segment ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.data import coco_json
from kmaskformer.data import images as image_files
from kmaskformer.data.arguments import refuse_negative
from kmaskformer.data.info import read_info
from kmaskformer.data.label_maps import runs
from kmaskformer.structures import VOID, DatasetInfo, Sample

_LARGEST_ID = 2**24 - 1


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One annotated image; `size` is height and width if the file states them, `ids` are in increasing order, `labels`
    and `is_crowd` in the same."""

    image: Path
    size: tuple[int, int] | None
    labels_png: Path
    image_id: str
    ids: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray


class CocoPanoptic:
    """COCO panoptic images: things and stuff, with crowds.

    Args:
        images: Folder of the images; their names are those in the JSON. If the JSON does not list images, a pattern
            with `{image_id}`, such as `"leftImg8bit/{image_id}_leftImg8bit.png"`.
        labels: Folder of the panoptic PNGs.
        annotations: The JSON file.
        info: The label space; by default that of the JSON's categories, contiguous ids in the order of the ids.
        root: Folder to which the paths refer.
        limit: Only the first `limit` images, in the order of the annotations; 0 for all.

    Raises:
        FileNotFoundError: If the JSON, a PNG or an image is missing.
        ValueError: If the JSON is damaged, repeats an id or names an unknown category.

    Example:
        >>> reader = CocoPanoptic("val2017", "panoptic_val2017", "panoptic_val2017.json", root="/data/coco")
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        annotations: str | Path,
        info: DatasetInfo | None = None,
        root: str | Path = ".",
        limit: int = 0,
    ) -> None:
        refuse_negative(limit=limit)
        self._path = Path(root) / annotations
        content = _load_json(self._path)
        self.info = info or _info(content, self._path)
        rows = content["annotations"]
        coco_json.require_fields(self._path, "annotations", rows, ("image_id", "file_name", "segments_info"))
        key = (int, str)
        coco_json.require_types(self._path, "annotations", rows, image_id=key, file_name=str, segments_info=list)
        coco_json.refuse_repeated(self._path, "image id", [row["image_id"] for row in rows])
        file_names = self._file_names(content.get("images", []))
        sizes = _sizes(content.get("images", []))
        rows = rows[:limit] if limit else rows
        self._entries = [self._entry(row, Path(root), str(images), str(labels), file_names, sizes) for row in rows]
        if not self._entries:
            raise ValueError(f"{self._path}: the dataset is empty, `annotations` holds no image.")
        coco_json.require_files(self._path, "image", [entry.image for entry in self._entries])
        coco_json.require_files(self._path, "panoptic PNG", [entry.labels_png for entry in self._entries])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        image, id_map = image_files.read_pair(entry.image, entry.labels_png, image_files.read_panoptic_ids)
        return Sample(
            image=image,
            segment_map=self._segment_map(id_map, entry),
            labels=entry.labels,
            is_crowd=entry.is_crowd,
            image_id=entry.image_id,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: image, panoptic PNG and annotations."""
        return (self._entries[index].image, self._entries[index].labels_png, self._path)

    def _file_names(self, rows: list[dict[str, Any]]) -> dict[Any, str]:
        coco_json.require_fields(self._path, "images", rows, ("id", "file_name"))
        coco_json.require_types(self._path, "images", rows, id=(int, str), file_name=str)
        coco_json.refuse_repeated(self._path, "image id in `images`", [row["id"] for row in rows])
        return {row["id"]: row["file_name"] for row in rows}

    def image_size(self, index: int) -> tuple[int, int] | None:
        """Height and width of an image, if the file states them."""
        return self._entries[index].size

    def _entry(
        self, row: dict, root: Path, images: str, labels: str, file_names: dict[Any, str], sizes: dict[Any, tuple]
    ) -> _Entry:
        image_id = row["image_id"]
        kind = f"segments of image {image_id}"
        coco_json.require_fields(self._path, kind, row["segments_info"], ("id", "category_id"))
        coco_json.require_types(self._path, kind, row["segments_info"], id=int, category_id=int)
        self._check_range(row["segments_info"], image_id)
        segments = sorted(row["segments_info"], key=lambda segment: segment["id"])
        coco_json.refuse_repeated(
            self._path, f"segment id of image {image_id}", [segment["id"] for segment in segments]
        )
        return _Entry(
            image=root / self._image_name(image_id, images, file_names),
            size=sizes.get(image_id),
            labels_png=root / labels / row["file_name"],
            image_id=str(image_id),
            ids=np.asarray([segment["id"] for segment in segments], np.int32),
            labels=coco_json.labels(segments, self.info, f"{self._path}: image {image_id} has segments"),
            is_crowd=coco_json.crowds(segments, f"{self._path}: image {image_id} has segment"),
        )

    def _check_range(self, segments: list[dict], image_id: Any) -> None:
        outside = [segment["id"] for segment in segments if not 1 <= segment["id"] <= _LARGEST_ID]
        if outside:
            raise ValueError(
                f"{self._path}: segment ids of image {image_id} must lie in 1..{_LARGEST_ID}, which is what a PNG can "
                f"hold. Received: {outside[:10]}. Correct the file."
            )

    def _image_name(self, image_id: Any, images: str, file_names: dict[Any, str]) -> str:
        if "{image_id}" in images:
            return images.replace("{image_id}", str(image_id))
        if image_id not in file_names:
            raise ValueError(
                f"{self._path}: `images` must list every annotated image. Received: an annotation of image "
                f"{image_id}, which is not listed. Add it, or give `images` as a pattern with {{image_id}}."
            )
        return str(Path(images) / file_names[image_id])

    def _segment_map(self, id_map: np.ndarray, entry: _Entry) -> np.ndarray:
        """Replaces segment ids by rows of the table; id 0 is void."""
        ids = np.concatenate([[0], entry.ids]).astype(np.int32)
        values, lengths = runs(id_map)
        rows = np.searchsorted(ids, values).clip(max=len(ids) - 1)
        is_stranger = ids[rows] != values
        strangers = np.repeat(values[is_stranger], lengths[is_stranger])
        if strangers.size:
            raise ValueError(
                f"{entry.labels_png}: every segment id must be in the table of image {entry.image_id} in {self._path}. "
                f"Received: ids {np.unique(strangers)[:10].tolist()} ({strangers.size} pixels) that are not. "
                "PNG and JSON do not belong together, or the PNG was resized with interpolation."
            )
        absent = entry.ids[np.bincount(rows, minlength=len(ids))[1:] == 0]
        if absent.size:
            raise ValueError(
                f"{entry.labels_png}: every segment of image {entry.image_id} in {self._path} must have pixels. "
                f"Received: no pixel of ids {absent[:10].tolist()}. PNG and JSON do not belong together, or the PNG "
                "was resized."
            )
        return np.repeat(rows.astype(np.int32) + VOID, lengths).reshape(id_map.shape)


def _load_json(path: Path) -> dict[str, Any]:
    content = coco_json.load(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    is_panoptic = isinstance(rows, list) and all(isinstance(row, dict) and "segments_info" in row for row in rows)
    if not is_panoptic or not isinstance(content.get("images", []), list):
        raise ValueError(
            f"{path}: a COCO panoptic file must have `annotations`, each with `segments_info`, and `images`, if at "
            "all, as a list. Received: "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}. "
            "Instance files (`instances_*.json`) are another format."
        )
    return content


def _sizes(rows: list[dict[str, Any]]) -> dict[Any, tuple[int, int]]:
    """Height and width of the images that have them in the file."""
    stated = {row["id"]: (row.get("height"), row.get("width")) for row in rows}
    return {image_id: size for image_id, size in stated.items() if all(isinstance(side, int) for side in size)}


def _info(content: dict[str, Any], path: Path) -> DatasetInfo:
    categories = content.get("categories")
    listed = categories if isinstance(categories, list) else []
    lacking = [category for category in listed if not isinstance(category, dict) or "isthing" not in category]
    if lacking or not listed:
        raise ValueError(
            f"{path}: every category must have `id`, `name` and `isthing`. Received: {(*lacking, 'no categories')[0]}. "
            "Complete the file or pass `info`."
        )
    coco_json.require_fields(path, "categories", categories, ("id", "name"))
    try:
        return read_info(categories, name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
