"""What each query has learned: the classes that it predicts and the places where it predicts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.structures import DatasetInfo


@dataclasses.dataclass
class QueryStatistics:
    """Sums over a dataset, one row per query.

    Args:
        num_images: Number of images.
        class_counts: `(queries, classes)`, in how many images the query predicted the class, its most likely one.
        mask_counts: `(queries, grid, grid)`, in how many of those images the query's mask covered the cell. A cell is
            the same share of every image, whatever its size.
        centers: For each query, `(predictions, 2)`: the centre y, x of its masks, 0..1 of the image's height and width.
    """

    num_images: int
    class_counts: np.ndarray
    mask_counts: np.ndarray
    centers: list[np.ndarray]

    @property
    def num_predictions(self) -> np.ndarray:
        """`(queries,)`, in how many images the query predicted anything but no-object."""
        return self.class_counts.sum(axis=1)

    def classes_of(self, query: int, info: DatasetInfo, count: int = 3) -> list[tuple[str, float]]:
        """The query's most frequent classes with their share of its predictions."""
        counts = self.class_counts[query]
        best = [i for i in np.argsort(-counts, kind="stable")[:count] if counts[i]]
        return [(info.class_names[i], float(counts[i] / counts.sum())) for i in best]


def query_statistics(model: MaskFormer, images: Iterable[Any], grid: int = 32) -> QueryStatistics:
    """Predictions of every query over images.

    A query predicts something where its most likely class is not no-object, and its mask is where the probability is at
    least 0.5; masks without a pixel count as nothing predicted.

    Args:
        model: A MaskFormer.
        images: Images, `(height, width, 3)` RGB 0..255, of any sizes.
        grid: Number of cells along each side.

    Raises:
        TypeError: If the model has no queries with classes.
        ValueError: If there is no image.
    """
    check_has_class_queries(model)
    queries = model.transformer_decoder.num_queries
    class_counts = np.zeros((queries, model.num_classes), np.int64)
    mask_counts = np.zeros((queries, grid, grid), np.int64)
    centers: list[list[tuple[float, float]]] = [[] for _ in range(queries)]
    num_images = 0
    for image in images:
        num_images += 1
        for query, label, mask in _predictions(model, np.asarray(image)):
            class_counts[query, label] += 1
            mask_counts[query] += _sampled(mask, grid)
            centers[query].append(_center(mask))
    if not num_images:
        raise ValueError("`images` must hold at least one image. Received: none")
    stacked = [np.asarray(points, np.float64).reshape(-1, 2) for points in centers]
    return QueryStatistics(num_images, class_counts, mask_counts, stacked)


def check_has_class_queries(model: Any) -> None:
    """Raises a `TypeError` unless the model's queries predict classes."""
    if not isinstance(model, MaskFormer):
        raise TypeError(f"Only a MaskFormer's queries predict classes. Received: {type(model).__name__}")


def _predictions(model: MaskFormer, image: np.ndarray) -> Iterable[tuple[int, int, np.ndarray]]:
    """Query, class and mask `(h, w)` bool, at stride 4 and without padding, of whatever is not no-object."""
    outputs = model(image[None], training=False)
    labels = ops.convert_to_numpy(outputs["class_logits"])[0].argmax(axis=-1)
    masks = ops.convert_to_numpy(outputs["mask_logits"])[0] >= 0
    padded = model.padded_size(*image.shape[:2])
    inside = [
        max(1, round(count * size / whole))
        for count, size, whole in zip(masks.shape[1:], image.shape[:2], padded, strict=True)
    ]
    masks = masks[:, : inside[0], : inside[1]]
    for query in np.flatnonzero((labels < model.num_classes) & masks.any(axis=(1, 2))):
        yield int(query), int(labels[query]), masks[query]


def _sampled(mask: np.ndarray, grid: int) -> np.ndarray:
    rows, columns = ((2 * np.arange(grid) + 1) * size // (2 * grid) for size in mask.shape)
    return mask[rows[:, None], columns]


def _center(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return (rows.mean() + 0.5) / mask.shape[0], (columns.mean() + 0.5) / mask.shape[1]
