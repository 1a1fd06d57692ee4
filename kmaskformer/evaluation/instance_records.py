"""Entries of COCO instance and result files, checked and brought to the one form that scoring expects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kmaskformer.data.coco_json import is_integer
from kmaskformer.data.polygons import polygon_mask
from kmaskformer.data.run_lengths import check_run_lengths, decode_mask, encode_mask

Record = Mapping[str, Any]
_NEEDED = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}


def checked_truth(content: Any, kind: str = "segm") -> dict[str, Any]:
    """The content of a COCO instance JSON as scoring needs it.

    What may be left out is filled in: `iscrowd` 0, `area`, and to compare boxes that of the mask. Annotations are
    numbered anew from 1, since the official tool takes one whose `id` is 0 for one that was not found, and the last of
    those that share an id for all of them.

    Args:
        content: Content of the JSON.
        kind: `segm` compares masks, `bbox` boxes.

    Raises:
        ValueError: If it is no COCO instance JSON, a field is no such value, or what is compared is missing.
    """
    check_instance_truth(content)
    sizes = image_sizes(content)
    records = [_without_empty(annotation) for annotation in content["annotations"]]
    _check_compared(records, kind, "true instance")
    annotations = []
    for number, record in enumerate(records, start=1):
        _check_mask(record, sizes, "truth")
        annotation = {"iscrowd": 0, **record, "id": number}
        if "area" not in annotation:
            annotation["area"] = mask_area(annotation, sizes)
        annotations.append(_with_box(annotation, sizes) if kind == "bbox" else annotation)
    return {**content, "annotations": annotations}


def checked_results(content: Record, results: Sequence[Record], kind: str = "segm") -> list[dict[str, Any]]:
    """Results for the images of a COCO instance JSON, with masks as compressed run lengths.

    Results of categories that the truth does not list count nowhere, as in the official tool; a warning says so.

    Args:
        content: Content of the instance JSON.
        results: Entries of a COCO result JSON.
        kind: `segm` compares masks, `bbox` boxes.

    Raises:
        ValueError: If an image is unknown, a field is no such value, what is compared is missing, or a mask has not
            the size of its image.
    """
    _check_fields(results, "result", _RESULT_FIELDS)
    results = [_without_empty(record) for record in results]
    _check_images(results, content, "Results name")
    _check_compared(results, kind, "result")
    strangers = _unlisted(results, "category_id", content["categories"])
    if strangers:
        message = f"results of categories that the truth does not list are ignored: {strangers}"
        warnings.warn(message, stacklevel=2)
    sizes = image_sizes(content)
    for record in results:
        _check_mask(record, sizes, "result")
    records = [with_run_lengths(record, sizes) for record in results]
    # The official tool looks at the first result to learn whether all have a box.
    return [_with_box(record, sizes) for record in records] if any("bbox" in one for one in records) else records


def check_instance_truth(content: Any) -> None:
    """Raises a `ValueError` unless the content is that of a COCO instance JSON."""
    keys = sorted(content) if isinstance(content, Mapping) else type(content).__name__
    if not set(_NEEDED) <= set(keys):
        raise ValueError(
            f"Truth must be a COCO instance JSON with `images`, `annotations` and `categories`. Received: {keys}"
        )
    for part, fields in _NEEDED.items():
        if not isinstance(content[part], list) or not all(isinstance(entry, Mapping) for entry in content[part]):
            raise ValueError(f"The truth's `{part}` must be a list of objects. Received: other content")
        for entry in content[part]:
            if "segments_info" in entry:
                raise ValueError("Truth must be a COCO instance JSON. Received: a panoptic JSON; score it as panoptic")
            if any(field not in entry for field in fields):
                raise ValueError(f"Each of the truth's `{part}` needs {', '.join(fields)}. Received: {sorted(entry)}")
    _check_fields(content["images"], "image", {"id": _IMAGE_ID, "height": _SIDE, "width": _SIDE})
    _check_fields(content["categories"], "category", {"id": _INTEGER})
    _check_fields(content["annotations"], "true instance", _TRUTH_FIELDS)
    # An instance that is looked for nowhere would not be missed by anyone, and raise the score.
    _check_images(content["annotations"], content, "Annotations name")
    strangers = _unlisted(content["annotations"], "category_id", content["categories"])
    if strangers:
        raise ValueError(f"Annotations name categories that the truth does not list: {strangers}")


class _Field(NamedTuple):
    """What the value of a field must be: in words, and as a function that says whether it is."""

    wanted: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value)))


def _is_mask(value: Any) -> bool:
    return value is None or isinstance(value, list) or (isinstance(value, Mapping) and {"counts", "size"} <= set(value))


_INTEGER = _Field("a whole number", is_integer)
_IMAGE_ID = _Field("a number or text", lambda value: isinstance(value, str) or is_integer(value))
_SIDE = _Field("a positive whole number", lambda value: is_integer(value) and value > 0)
_BOX = _Field("left, top, width and height, four numbers", _is_box)
_MASK = _Field("polygons, or run lengths with `counts` and `size`", _is_mask)
_TRUTH_FIELDS = {
    "image_id": _IMAGE_ID,
    "category_id": _INTEGER,
    "iscrowd": _Field("0 or 1", lambda value: value in (0, 1)),
    "area": _Field("a number from 0 on", lambda value: _is_number(value) and value >= 0),
    "bbox": _BOX,
    "segmentation": _MASK,
}
_RESULT_FIELDS = {
    "image_id": _IMAGE_ID,
    "category_id": _INTEGER,
    "score": _Field("a finite number", _is_number),
    "bbox": _BOX,
    "segmentation": _MASK,
}


def _check_fields(records: Sequence[Record], what: str, fields: Mapping[str, _Field]) -> None:
    for number, record in enumerate(records):
        for name, field in fields.items():
            if name in record and not field.accepts(record[name]):
                image = f" of image_id {record['image_id']!r}" if "image_id" in record else ""
                raise ValueError(
                    f"`{name}` of each {what} must be {field.wanted}. Received: {str(record[name])[:80]!r}{image}, "
                    f"in entry {number} (counted from 0)"
                )


def _check_images(records: Sequence[Record], content: Record, who: str) -> None:
    strangers = _unlisted(records, "image_id", content["images"])
    if strangers:
        raise ValueError(f"{who} images that the truth does not have: {strangers}")


def _unlisted(records: Sequence[Record], field: str, listed: Sequence[Record]) -> list:
    """The first five values of a field that are no `id` of what is listed."""
    return sorted({record[field] for record in records} - {one["id"] for one in listed}, key=str)[:5]


def _without_empty(record: Record) -> dict[str, Any]:
    """A copy without a box or a mask that says nothing, as annotation tools write them: null, or no polygon."""
    empty = {key for key in ("bbox", "segmentation") if record.get(key, 0) in (None, [])}
    return {key: value for key, value in record.items() if key not in empty}


def _with_box(record: dict[str, Any], sizes: Mapping[Any, tuple[int, int]]) -> dict[str, Any]:
    """The record, with the box of its mask where it states none."""
    if "bbox" in record:
        return record
    return {**record, "bbox": box_of(decode_mask(with_run_lengths(record, sizes)["segmentation"]))}


def box_of(mask: np.ndarray) -> list[float]:
    """Left, top, width and height of a mask's box; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return [0.0, 0.0, 0.0, 0.0]
    return [float(one) for one in (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]


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
    if not isinstance(segmentation, Mapping):
        return
    if size and tuple(segmentation["size"]) != tuple(size):
        raise ValueError(
            f"Masks must have the size of their image. Received: a {kind} of size {tuple(segmentation['size'])} for "
            f"image_id {record['image_id']!r} of size {tuple(size)} (height, width)"
        )
    try:
        # The official tool would read on beyond the mask, or leave a part of it out.
        check_run_lengths(segmentation)
    except ValueError as error:
        raise ValueError(f"{kind} of image_id {record['image_id']!r}: {error}") from error


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
