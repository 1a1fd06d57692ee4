"""From a picture to its segments: decoding, resizing, the model, and the result at the picture's own size."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from kmaskformer import visualize
from kmaskformer.data.images import read_image, upright_rgb
from kmaskformer.inference.augmented import Augmentation, ViewOutputs, augmented_semantic_map
from kmaskformer.inference.postprocess import Postprocess
from kmaskformer.inference.segments import instance_segments, panoptic_segments, semantic_segments
from kmaskformer.inference.strips import STRIP_BYTES
from kmaskformer.inference.tiles import Tiling, stitch
from kmaskformer.structures import TASKS, VOID, DatasetInfo, Segment


@dataclasses.dataclass(eq=False)
class SegmentationResult:
    """What was found in one picture.

    Args:
        image: `(height, width, 3)` uint8 RGB, upright.
        segmentation: `(height, width)` int32. Semantic: contiguous class ids, and `structures.VOID` where general
            inference found nothing. Panoptic and instance: ids of the segments from 1, 0 where there is none.
        segments: One row per segment, whose `id` is the value in `segmentation` (for semantic results the class id).
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        info: The label space.
        masks: `(segments, height, width)` bool, for instances, which may overlap; None for the other tasks.
    """

    image: np.ndarray
    segmentation: np.ndarray
    segments: list[Segment]
    task: str
    info: DatasetInfo
    masks: np.ndarray | None = None

    def overlay(self, **options: Any) -> Image.Image:
        """The picture with its segments drawn over it; for the options see `visualize.overlay`."""
        return visualize.overlay(self.image, self.segmentation, self.segments, self.info, masks=self.masks, **options)

    def save(self, folder: str | os.PathLike, name: str) -> dict[str, Path]:
        """Writes the result as files.

        Args:
            folder: Folder to write into; made if it is missing.
            name: Stem of the file names.

        Returns:
            Paths of `overlay` (`<name>_overlay.png`, enlarged where the picture is small), `segmentation`
            (`<name>_segmentation.png`: the numbers of `segmentation` in 8 bits, or 16 where they need them, void as
            255 or 65535) and `table` (`<name>.json`).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            "overlay": folder / f"{name}_overlay.png",
            "segmentation": folder / f"{name}_segmentation.png",
            "table": folder / f"{name}.json",
        }
        self.overlay(size=visualize.readable_size(*self.segmentation.shape)).save(paths["overlay"])
        wide = self.segmentation.max(initial=0) > 254
        stored = np.where(self.segmentation == VOID, 65535 if wide else 255, self.segmentation)
        Image.fromarray(stored.astype(np.uint16 if wide else np.uint8)).save(paths["segmentation"])
        height, width = self.segmentation.shape
        table = {"task": self.task, "height": height, "width": width, "segments": self.segments}
        paths["table"].write_text(json.dumps(table, indent=1) + "\n")
        return paths


class Segmenter:
    """Segments pictures of any kind and size with a trained model.

    On the TensorFlow backend the whole way from the resized image to the result is one graph, traced once for all
    sizes; on the other backends it runs eagerly.

    Args:
        model: A model of this package: `model(images)`, `model.padded_size(height, width)`, `model.num_classes`.
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        inference: `"default"`, each task's own rule, or `"general"`, the paper's one rule for all tasks: each pixel to
            the pair with the largest product of class and mask probability.
        shortest_edge: Length to which the shorter side is resized before the model sees the picture, larger or smaller;
            None for the picture's own size. Use the size that the model was evaluated at.
        longest_edge: Bound of the longer side, which wins over `shortest_edge`; alone it only makes pictures smaller.
        object_mask_threshold: A pair's score must be greater to take part in panoptic or general inference. None:
            0.8 for default inference, as published for COCO (ADE20K: 0.7), and no filter for general inference.
        overlap_threshold: A panoptic segment must keep at least this part of its own mask. None: as above.
        score_threshold: Least score of an instance.
        before_inference: Whether default semantic inference restores mask logits rather than class scores to the
            picture's size: the order of the published panoptic models, and leaner with many classes.
        dataset_info: Names, colours and things of the classes; those of the model by default.
        augmentation: Sizes and mirror images whose class scores are averaged; for default semantic inference only.
        tiling: Cuts the resized picture into overlapping tiles, which the model sees one by one: for pictures much
            larger than the crops of the training. Semantic and panoptic results only.

    Raises:
        ValueError: If an option is none that exists, the model is a per-pixel one and the task not semantic,
            `dataset_info` has another number of classes than the model, instances are asked for and no class is a
            thing, an augmentation is given to what cannot average, or a tiling to what cannot be put together.

    Example:
        ```python
        result = Segmenter(model, task="panoptic", shortest_edge=800, longest_edge=1333)("street.jpg")
        result.overlay().save("street.png")
        ```
    """

    def __init__(
        self,
        model: Any,
        task: str = "semantic",
        inference: str = "default",
        shortest_edge: int | None = None,
        longest_edge: int | None = None,
        object_mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        score_threshold: float = 0.5,
        before_inference: bool = False,
        dataset_info: DatasetInfo | None = None,
        augmentation: Augmentation | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        check_edges(shortest_edge, longest_edge)
        _check_task(model, task)
        _check_tiling(tiling, task, augmentation)
        self.model = model
        self.task = task
        self.info = DatasetInfo.of_model(model, dataset_info)
        self.shortest_edge = shortest_edge
        self.longest_edge = longest_edge
        self.postprocess = Postprocess(
            task,
            inference,
            self.info.thing_ids,
            object_mask_threshold,
            overlap_threshold,
            score_threshold,
            before_inference,
            strip_bytes=STRIP_BYTES,
            drop_queries=True,
        )
        if task == "instance" and not self.info.thing_ids:
            raise ValueError(
                f'`task="instance"` needs thing classes, and `{self.info.name}` has none. '
                "Pass a `dataset_info` whose `thing_ids` name the countable classes."
            )
        if augmentation is not None and (task, inference) != ("semantic", "default"):
            raise ValueError(
                "Test-time augmentation averages the class scores of pixels, which only default semantic inference "
                "has: the segments that different views give are not the same ones. "
                f"Received: task={task!r}, inference={inference!r}"
            )
        self.augmentation = augmentation
        self.tiling = tiling
        self._predict = _compiled(self._run)
        self._forward = _compiled(self._call_model, num_sizes=0)

    def __call__(self, image: Any) -> SegmentationResult | list[SegmentationResult]:
        """Segments a picture.

        Args:
            image: Path, bytes or open binary file of an image, a PIL image, or an array, `(height, width, 3)` RGB or
                `(height, width)` grey, of numbers 0..255. A list or tuple of these gives a list of results.

        Returns:
            The result at the picture's own size.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read, or the array is no picture.
        """
        if isinstance(image, (list, tuple)):
            return [self(item) for item in image]
        pixels = as_pixels(image)
        size = pixels.shape[:2]
        resized = _resize(pixels, shortest_edge_size(*size, self.shortest_edge, self.longest_edge))
        if self.augmentation is not None:
            results = self._all_views(pixels, resized)
        elif self.tiling is not None:
            results = self._in_tiles(resized, size)
        else:
            results = self._one_view(resized, size)
        shown = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        return SegmentationResult(shown, *self._segments(results))

    def _one_view(self, resized: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        padded_size = self.model.padded_size(*resized.shape[:2])
        results = self._predict(
            np.asarray(resized[None], np.float32), np.array(padded_size, np.int32), np.array(size, np.int32)
        )
        return {key: keras.ops.convert_to_numpy(value)[0] for key, value in results.items()}

    def _in_tiles(self, resized: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        tiles = self.tiling.tiles(*resized.shape[:2])
        parts = [resized[tile.region] for tile in tiles]
        return stitch([self._one_view(part, part.shape[:2]) for part in parts], tiles, size, self.info.thing_ids)

    def _all_views(self, pixels: np.ndarray, resized: np.ndarray) -> dict[str, np.ndarray]:
        views = []
        for view, flipped in self.augmentation.views(pixels, resized, _resize_to_edges):
            sizes = (self.model.padded_size(*view.shape[:2]), view.shape[:2])
            views.append(ViewOutputs(self._forward(np.asarray(view[None], np.float32)), *sizes, flipped))
        maps = augmented_semantic_map(views, pixels.shape[:2], self.postprocess.before_inference)
        class_map, confidence = (keras.ops.convert_to_numpy(one)[0] for one in maps)
        return {"class_map": class_map, "confidence": confidence}

    def _call_model(self, images: Any) -> dict[str, Any]:
        outputs = self.model(images, training=False)
        return {key: outputs[key] for key in ("class_logits", "mask_logits", "logits") if key in outputs}

    def _run(self, images: Any, padded_size: Any, output_size: Any) -> dict[str, Any]:
        outputs = self.model(images, training=False)
        return self.postprocess(outputs, padded_size, keras.ops.shape(images)[1:3], output_size)

    def _segments(self, results: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """Segmentation, rows, task, label space and masks of a result."""
        if self.task == "semantic":
            class_map = results["class_map"]
            return class_map, semantic_segments(class_map, results["confidence"], self.info), self.task, self.info
        if self.task == "panoptic":
            segmentation = results.pop("panoptic_map")
            return segmentation, panoptic_segments(segmentation, results, self.info), self.task, self.info
        found = {key: value[results["valid"]] for key, value in results.items()}
        masks = found.pop("masks")
        return *instance_segments(masks, found, self.info), self.task, self.info, masks


def as_pixels(image: Any) -> np.ndarray:
    """Any kind of picture as an array.

    Args:
        image: Path, bytes, open binary file, PIL image, or an array or tensor `(height, width, 3)`,
            `(height, width, 1)` or `(height, width)`.

    Returns:
        `(height, width, 3)` RGB 0..255, upright: uint8, or float32 if the array was of floats.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is none of these.
        ValueError: If it is no picture, or its values are not 0..255.
    """
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        image = image.read()
    if isinstance(image, (str, os.PathLike, bytes)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return upright_rgb(image.copy(), "image")
    if not hasattr(image, "shape"):
        raise TypeError(
            "`image` must be a path, bytes, an open binary file, a PIL image or an array. "
            f"Received: {type(image).__name__}"
        )
    pixels = image if isinstance(image, np.ndarray) else keras.ops.convert_to_numpy(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            "An image array must have shape (height, width, 3) or (height, width). "
            f"Received: shape {image.shape}. Pass the images of a batch as a list, and drop an alpha channel."
        )
    _check_range(pixels)
    pixels = pixels.astype(np.uint8 if pixels.dtype.kind in "ui" else np.float32)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def shortest_edge_size(height: int, width: int, shortest_edge: int | None, longest_edge: int | None) -> tuple[int, int]:
    """Size of an image whose shorter side becomes `shortest_edge` and its longer side at most `longest_edge`."""
    scale = 1.0 if shortest_edge is None else shortest_edge / min(height, width)
    if longest_edge is not None:
        scale = min(scale, longest_edge / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize by Pillow, which averages over the covered pixels when shrinking, as at evaluation."""
    if size == pixels.shape[:2]:
        return pixels
    mode = Image.Resampling.BILINEAR
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], mode))
    channels = [Image.fromarray(np.ascontiguousarray(pixels[..., i])).resize(size[::-1], mode) for i in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _resize_to_edges(pixels: np.ndarray, shortest_edge: int, longest_edge: int | None) -> np.ndarray:
    return _resize(pixels, shortest_edge_size(*pixels.shape[:2], shortest_edge, longest_edge))


def _compiled(function: Callable[..., Any], num_sizes: int = 2) -> Callable[..., Any]:
    """One `tf.function` for images of all sizes, or the function itself on the other backends."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    size = tf.TensorSpec((2,), tf.int32)
    images = tf.TensorSpec((1, None, None, 3), tf.float32)
    return tf.function(function, input_signature=(images, *[size] * num_sizes), autograph=False)


def _check_task(model: Any, task: str) -> None:
    known = getattr(model, "TASKS", TASKS)
    if task in TASKS and task not in known:
        raise ValueError(
            f"A {type(model).__name__} can do: {', '.join(known)}. Received: task={task!r}. "
            "Use a MaskFormer for instance and panoptic results."
        )


def _check_tiling(tiling: Tiling | None, task: str, augmentation: Augmentation | None) -> None:
    if tiling is not None and (task == "instance" or augmentation is not None):
        raise ValueError(
            "`tiling` is for semantic and panoptic results of one view: instances may overlap, so that no map of the "
            f"picture holds them. Received: task={task!r}{'' if augmentation is None else ' and an augmentation'}. "
            'Use task="panoptic", whose segments are instances, too, or leave out the augmentation.'
        )


def check_edges(shortest_edge: int | None, longest_edge: int | None) -> None:
    """Refuses sizes that no image can be resized to, with a `ValueError`."""
    for name, edge in (("shortest_edge", shortest_edge), ("longest_edge", longest_edge)):
        if edge is not None and edge < 1:
            raise ValueError(f"`{name}` must be a positive number of pixels, or None. Received: {name}={edge}")


def _check_range(pixels: np.ndarray) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind not in "uif" or not (low >= 0 and high <= 255):
        raise ValueError(
            f"Pixels must be numbers 0..255. Received: {pixels.dtype} from {low:g} to {high:g}. Scale them to 0..255."
        )
    if pixels.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(
            f"Pixels must be numbers 0..255. Received: {pixels.dtype} from {low:g} to {high:g}, which looks like "
            "0..1. Multiply them by 255."
        )
