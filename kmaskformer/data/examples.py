"""Reader of examples that a Python program holds or makes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskformer.data import images
from kmaskformer.data.label_maps import segments_of_classes
from kmaskformer.structures import VOID, DatasetInfo, Sample

_TRUTHS = ("label_map", "segment_map", "masks")


class Examples:
    """Examples from plain Python: dicts with an `image` and its truth in one of three forms.

    - `label_map`: `(height, width)` ids of classes, as a semantic PNG holds them; or the path of such a file, or a PIL
      image, unless it was compressed with loss;
    - `segment_map` `(height, width)`, row of the table or -1, with `labels` `(segments,)`, contiguous class ids;
    - `masks` `(segments, height, width)`, anything but 0 is inside, with `labels`; where masks overlap, the smallest
      one has the pixel.

    `image` is `(height, width, 3)` or `(height, width)` uint8, a PIL image, or a path. Files and PIL images with an
    EXIF orientation are turned upright, maps by their own; two paths are aligned as `images.read_pair` does. `is_crowd`
    `(segments,)` and `image_id` may be added. A pair `(image, label_map)` stands for the first form.

    A cache in a folder notices changes of files whose paths are in a list or tuple of examples. It cannot know of any
    other change: empty the folder when the examples change.

    Args:
        examples: A sequence, whose items are read when needed, or another iterable, which is kept in memory; arrays are
            copied, as a generator may fill the same one again.
        info: The label space.

    Example:
        >>> examples = [{"image": np.zeros((4, 6, 3), np.uint8), "label_map": np.zeros((4, 6), np.uint8)}]
        >>> len(Examples(examples, DatasetInfo("toy", ("soil", "crop"))))
        1
    """

    def __init__(self, examples: Iterable[Any], info: DatasetInfo) -> None:
        self.info = info
        is_sequence = hasattr(examples, "__getitem__")
        self._examples: Sequence[Any] = examples if is_sequence else [_kept(example) for example in examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        example = self._examples[index]
        where = f"example {index}"
        if isinstance(example, tuple | list) and len(example) == 2:
            example = {"image": example[0], "label_map": example[1]}
        given = [key for key in _TRUTHS if isinstance(example, Mapping) and key in example]
        if len(given) != 1 or "image" not in example:
            received = sorted(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
            raise ValueError(
                f"{where}: must have `image` and one of {', '.join(_TRUTHS)}, or be a pair (image, label_map). "
                f"Received: {received}."
            )
        example = _read_files(example, given[0])
        image = _image(example["image"], where)
        segment_map, labels = self._truth(example, given[0], where)
        if segment_map.shape != image.shape[:2]:
            raise ValueError(
                f"{where}: image and `{given[0]}` must have the same height and width. "
                f"Received: {image.shape[:2]} and {segment_map.shape}."
            )
        is_crowd = np.asarray(example.get("is_crowd", np.zeros(len(labels))), bool)
        if is_crowd.shape != labels.shape:
            raise ValueError(f"{where}: `is_crowd` must have one entry per segment. Received: {is_crowd.shape}.")
        image_id = str(example.get("image_id", index))
        return Sample(image=image, segment_map=segment_map, labels=labels, is_crowd=is_crowd, image_id=image_id)

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of an example in a list or tuple; another sequence may have to make the example to tell."""
        example = self._examples[index] if isinstance(self._examples, list | tuple) else ()
        values = [example.get(key) for key in ("image", *_TRUTHS)] if isinstance(example, Mapping) else example
        given = values if isinstance(values, list | tuple) else ()
        return tuple(Path(value) for value in given if isinstance(value, str | os.PathLike))

    def _truth(self, example: Mapping[str, Any], kind: str, where: str) -> tuple[np.ndarray, np.ndarray]:
        if kind == "label_map":
            return segments_of_classes(_whole_numbers(example[kind], where, kind), self.info, where)
        labels = np.asarray(example.get("labels", ()))
        labels = _whole_numbers(labels, where, "labels") if labels.size else np.zeros(0, np.int32)
        outside = labels[(labels < 0) | (labels >= self.info.num_classes)]
        if outside.size:
            raise ValueError(
                f"{where}: `labels` must be contiguous class ids 0..{self.info.num_classes - 1}. "
                f"Received: {np.unique(outside)[:10].tolist()}."
            )
        segment_map = _from_masks(example[kind], where) if kind == "masks" else example[kind]
        segment_map = _whole_numbers(segment_map, where, kind)
        num_masks = len(example[kind]) if kind == "masks" else len(labels)
        if num_masks != len(labels) or segment_map.min(initial=0) < VOID or segment_map.max(initial=VOID) >= num_masks:
            raise ValueError(
                f"{where}: `labels` must have one entry for each segment of `{kind}`, whose pixels hold rows of "
                f"`labels` or {VOID}. Received: {len(labels)} labels, {num_masks} segments, rows "
                f"{segment_map.min(initial=0)}..{segment_map.max(initial=VOID)}."
            )
        return segment_map, labels


def _kept(value: Any) -> Any:
    """The example with copies of its arrays."""
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _read_files(example: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The example with arrays for an image and a map that are both files, as only together they can be aligned."""
    if not all(isinstance(example[key], images.ImageSource) for key in ("image", kind)):
        return example
    image, segment_map = images.read_pair(example["image"], example[kind])
    return {**example, "image": image, kind: segment_map}


def _image(image: Any, where: str) -> np.ndarray:
    if isinstance(image, images.ImageSource):
        return images.read_image(image)
    pixels = np.asarray(images.upright_rgb(image, where) if hasattr(image, "convert") else image)
    pixels = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"{where}: `image` must be (height, width, 3) or (height, width) uint8, a PIL image or a path. "
            f"Received: an array of {pixels.dtype} and shape {pixels.shape}."
        )
    return pixels


def _whole_numbers(values: Any, where: str, kind: str) -> np.ndarray:
    """As int32; a path or a PIL image is read as a label map."""
    if isinstance(values, images.ImageSource):
        return images.read_label_map(values)
    if isinstance(values, Image.Image):
        return images.stored_ids(values, f"{where}: `{kind}`")
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "biu":
        raise ValueError(
            f"{where}: `{kind}` must hold whole numbers. Received: an array of {numbers.dtype}. "
            "Round and convert it to int32 if its values are ids."
        )
    limits = np.iinfo(np.int32)
    if numbers.size and not limits.min <= int(numbers.min()) <= int(numbers.max()) <= limits.max:
        raise ValueError(f"{where}: `{kind}` must hold numbers of 32 bits. Received: {numbers.min()}..{numbers.max()}.")
    return numbers.astype(np.int32)


def _from_masks(masks: Any, where: str) -> np.ndarray:
    if isinstance(masks, list | tuple):
        masks = [_whole_numbers(mask, where, "masks") if isinstance(mask, Image.Image) else mask for mask in masks]
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise ValueError(f"{where}: `masks` must be (segments, height, width). Received: shape {masks.shape}.")
    segment_map = np.full(masks.shape[1:], VOID, np.int32)
    areas = np.count_nonzero(masks, axis=(1, 2))
    for row in np.argsort(-areas, kind="stable"):
        segment_map[masks[row] != 0] = row
    return segment_map
