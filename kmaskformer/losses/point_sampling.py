"""Mask losses at sampled points instead of at every pixel: a fraction of the time and memory, the same goal."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.losses.mask_losses import dice_loss, sigmoid_focal_loss
from kmaskformer.ops.masks import void_pixels
from kmaskformer.structures import Targets

Tensor = Any


@keras.saving.register_keras_serializable(package="kmaskformer")
class PointSampling:
    """Focal and dice loss of each mask at `num_points` points of its own, drawn anew at every call.

    Of `oversample_ratio · num_points` points drawn uniformly over the image, the `importance_ratio · num_points` whose
    logit is nearest to 0 are taken; the rest are drawn uniformly. So most points lie where a mask is undecided, above
    all along its border. Points lie between pixel centres: logits are interpolated bilinearly there, as by the resize
    of the dense losses, and the target is that of the pixel that the point is in.

    The value differs from the dense losses' (it is another, random weighting of the pixels); with all points drawn
    uniformly it estimates the focal loss without bias.

    Args:
        num_points: Points per mask.
        oversample_ratio: Candidates per point, at least 1.
        importance_ratio: Part of the points that are picked from the candidates, 0..1.
        seed: Seed of the points; None draws one from Keras' global seed.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        - A. Kirillov et al.: PointRend: Image Segmentation as Rendering (2020), section 3.1.
        - B. Cheng et al.: Masked-attention Mask Transformer (2022), section 3.3, for the sizes.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        seed: int | None = None,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"`num_points` must be a positive integer. Received: num_points={num_points}")
        if oversample_ratio < 1:
            raise ValueError(f"`oversample_ratio` must be at least 1. Received: oversample_ratio={oversample_ratio}")
        if not 0 <= importance_ratio <= 1:
            raise ValueError(f"`importance_ratio` must lie in 0..1. Received: importance_ratio={importance_ratio}")
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio
        self.seed_generator = keras.random.SeedGenerator(seed)

    def __call__(self, mask_logits: Tensor, targets: Targets, ignore_void: bool = False) -> tuple[Tensor, Tensor]:
        """Both losses.

        Args:
            mask_logits: `(batch, segments, h, w)`, those of each segment's query.
            targets: A batch of targets of the extent that the logits cover.
            ignore_void: Whether points in no segment are left out.

        Returns:
            Focal and dice loss, each `(batch, segments)` float32.
        """
        mask_logits = ops.cast(mask_logits, "float32")
        points = ops.stop_gradient(self.draw(mask_logits))
        logits = interpolate_at(mask_logits, points)[..., None, :]
        masks = masks_at(targets, points)[..., None, :]
        counted = None
        if ignore_void:
            labelled = {"masks": ops.logical_not(ops.expand_dims(void_pixels(targets), 1))}
            counted = masks_at(labelled, points)[..., None, :]
        return sigmoid_focal_loss(logits, masks, counted=counted), dice_loss(logits, masks, counted)

    def draw(self, mask_logits: Tensor) -> Tensor:
        """Points `(batch, segments, num_points, 2)`: row and column, 0..1 over the image."""
        shape = ops.shape(mask_logits)[:2]
        num_picked = round(self.num_points * self.importance_ratio)
        num_uniform = self.num_points - num_picked
        uniform = keras.random.uniform((*shape, num_uniform, 2), dtype="float32", seed=self.seed_generator)
        if num_picked == 0:
            return uniform
        num_candidates = round(self.num_points * self.oversample_ratio)
        candidates = keras.random.uniform((*shape, num_candidates, 2), dtype="float32", seed=self.seed_generator)
        certainty = ops.abs(interpolate_at(ops.stop_gradient(mask_logits), candidates))
        _, picked = ops.top_k(-certainty, num_picked, sorted=False)
        return ops.concatenate([ops.take_along_axis(candidates, picked[..., None], axis=2), uniform], axis=2)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "num_points": self.num_points,
            "oversample_ratio": self.oversample_ratio,
            "importance_ratio": self.importance_ratio,
            "seed": self.seed_generator.get_config()["seed"],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PointSampling:
        """The sampling that `get_config` described."""
        return cls(**config)


def interpolate_at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear interpolation between pixel centres, clamped at the borders.

    Args:
        maps: `(batch, segments, h, w)`.
        points: `(batch, segments, points, 2)`, row and column, 0..1 over the map.

    Returns:
        `(batch, segments, points)`.
    """
    height, width = ops.shape(maps)[-2:]
    rows, row_weights = _neighbours(points[..., 0], height)
    columns, column_weights = _neighbours(points[..., 1], width)
    value = 0.0
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            value = value + row_weight * column_weight * _pick(maps, row, column)
    return value


def masks_at(targets: Targets, points: Tensor) -> Tensor:
    """Whether each point lies in its segment.

    Args:
        targets: With `segment_map` `(batch, height, width)` or `masks` `(batch, segments, height, width)`.
        points: `(batch, segments, points, 2)`, row and column, 0..1.

    Returns:
        `(batch, segments, points)` float32, 0 or 1.
    """
    overlapping = "masks" in targets
    values = ops.convert_to_tensor(targets["masks"] if overlapping else targets["segment_map"])
    height, width = ops.shape(values)[-2:]
    row, column = (
        ops.minimum(ops.cast(points[..., axis] * ops.cast(size, "float32"), "int32"), size - 1)
        for axis, size in enumerate((height, width))
    )
    if overlapping:
        return ops.cast(_pick(values, row, column), "float32")
    segments = ops.arange(ops.shape(points)[1], dtype="int32")[None, :, None]
    return ops.cast(_pick(ops.expand_dims(values, 1), row, column) == segments, "float32")


def _neighbours(position: Tensor, size: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Indices of the two pixel centres around a position 0..1, and their weights."""
    position = ops.clip(position * ops.cast(size, "float32") - 0.5, 0.0, ops.cast(size - 1, "float32"))
    low = ops.floor(position)
    part = position - low
    low = ops.cast(low, "int32")
    return (low, ops.minimum(low + 1, size - 1)), (1.0 - part, part)


def _pick(maps: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`maps[b, s, row[b, s, p], column[b, s, p]]`; `maps` may have one entry for all segments."""
    batch, num_maps, _, width = ops.shape(maps)
    # By map and not over all of them, whose pixels may be more than 32 bits can count.
    index = ops.reshape(row * width + column, (batch, num_maps, -1))
    values = ops.take_along_axis(ops.reshape(maps, (batch, num_maps, -1)), index, axis=2)
    return ops.reshape(values, ops.shape(row))
