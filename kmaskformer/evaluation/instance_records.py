"""Entries of COCO instance and result files, checked and brought to the one form that scoring expects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kmaskformer.data.polygons import polygon_mask
from kmaskformer.data.run_lengths import decode_mask, encode_mask

Record = Mapping[str, Any]
_NEEDED = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}


def checked_truth(content: Any, kind: str = "segm") -> dict[str, Any]:
    """The content of a COCO instance JSON, with what may be left out filled in: `id`, `iscrowd` 0, and `area`.

    Args:
        content: Content of the JSON.
        kind: `segm` compares masks, `bbox` boxes.

    Raises:
        ValueError: If it is no COCO instance JSON, or what is compared is missing.
    """
    check_instance_truth(content)
    _check_compared(content["annotations"], kind, "true instance")
    sizes = image_sizes(content)
    named = all("id" in annotation for annotation in content["annotations"])
    annotations = []
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation = {"iscrowd": 0, **annotation} | ({} if named else {"id": number})
        _check_mask(annotation, sizes, "truth")
        if "area" not in annotation:
            annotation["area"] = mask_area(annotation, sizes)
        annotations.append(annotation)
    return {**content, "annotations": annotations}


def checked_results(content: Record, results: Sequence[Record], kind: str = "segm") -> list[dict[str, Any]]:
    """Results for the images of a COCO instance JSON, with masks as compressed run lengths.

    Results of categories that the truth does not list count nowhere, as in the official tool; a warning says so.

    Args:
        content: Content of the instance JSON.
        results: Entries of a COCO result JSON.
        kind: `segm` compares masks, `bbox` boxes.

    Raises:
        ValueError: If an image is unknown, what is compared is missing, or a mask has not the size of its image.
    """
    unknown = {record["image_id"] for record in results} - {image["id"] for image in content["images"]}
    if unknown:
        raise ValueError(f"Results name images that the truth does not have: {sorted(unknown, key=str)[:5]}")
    _check_compared(results, kind, "result")
    strangers = {record["category_id"] for record in results} - {category["id"] for category in content["categories"]}
    if strangers:
        message = f"results of categories that the truth does not list are ignored: {sorted(strangers, key=str)[:5]}"
        warnings.warn(message, stacklevel=2)
    sizes = image_sizes(content)
    for record in results:
        _check_mask(record, sizes, "result")
    return [with_run_lengths(record, sizes) for record in results]


def check_instance_truth(content: Any) -> None:
    """Raises a `ValueError` unless the content is that of a COCO instance JSON."""
    keys = sorted(content) if isinstance(content, Mapping) else type(content).__name__
    if not set(_NEEDED) <= set(keys):
        raise ValueError(
            f"Truth must be a COCO instance JSON with `images`, `annotations` and `categories`. Received: {keys}"
        )
    if any("segments_info" in annotation for annotation in content["annotations"]):
        raise ValueError("Truth must be a COCO instance JSON. Received: a panoptic JSON; score it as panoptic")
    for part, fields in _NEEDED.items():
        for entry in content[part]:
            if any(field not in entry for field in fields):
                raise ValueError(f"Each of the truth's `{part}` needs {', '.join(fields)}. Received: {sorted(entry)}")


def image_sizes(content: Record) -> dict[Any, tuple[int, int]]:
    """`(height, width)` by image id, for the images that state it."""
    return {i["id"]: (i["height"], i["width"]) for i in content["images"] if "height" in i and "width" in i}


def mask_area(record: Record, sizes: Mapping[Any, tuple[int, int]]) -> float:
    """Pixels of a record's mask; of its box where it has no mask.

    Raises:
        ValueError: If it has neither.
    """
    if "segmentation" in record:
        return float(np.count_nonzero(decode_mask(with_run_lengths(record, sizes)["segmentation"])))
    if "bbox" in record:
        return float(record["bbox"][2] * record["bbox"][3])
    raise ValueError(f"A true instance needs a `segmentation` or a `bbox`. Received: {sorted(record)}")


def _check_compared(records: Sequence[Record], kind: str, what: str) -> None:
    """Refuses records without a mask; to compare boxes either will do, as a mask has a box."""
    field = "segmentation" if kind == "segm" else "bbox"
    without = [record for record in records if field not in record and (kind == "segm" or "segmentation" not in record)]
    if without:
        raise ValueError(
            f"Every {what} must have `{field}` to compare {kind}. Received: {len(without)} of {len(records)} without, "
            f"first one with {sorted(without[0])}"
        )


def _check_mask(record: Record, sizes: Mapping[Any, tuple[int, int]], kind: str) -> None:
    segmentation, size = record.get("segmentation"), sizes.get(record["image_id"])
    if isinstance(segmentation, Mapping) and size and tuple(segmentation["size"]) != tuple(size):
        raise ValueError(
            f"Masks must have the size of their image. Received: a {kind} of size {tuple(segmentation['size'])} for "
            f"image_id {record['image_id']!r} of size {tuple(size)} (height, width)"
        )


def with_run_lengths(record: Record, sizes: Mapping[Any, tuple[int, int]]) -> dict[str, Any]:
    """A copy whose mask is compressed run lengths, whatever form COCO allows it has."""
    segmentation = record.get("segmentation")
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], list):
        return {**record, "segmentation": encode_mask(decode_mask(segmentation))}
    if isinstance(segmentation, list):
        size = sizes.get(record["image_id"])
        if size is None:
            raise ValueError(f"A mask given as polygons needs height and width of image_id {record['image_id']!r}")
        return {**record, "segmentation": encode_mask(polygon_mask(segmentation, *size))}
    return dict(record)
