"""What happens to pixels before the backbone: normalisation and padding."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import keras
from keras import ops

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@keras.saving.register_keras_serializable(package="kmaskformer")
class ImagePreprocessing(keras.layers.Layer):
    """Normalises RGB images and pads them with zeros, right and bottom, to a multiple of `size_divisibility`.

    Padding comes after normalisation, so a padded pixel has the mean colour. No padding mask follows: attention and
    position embeddings see the padding, as in the reference.

    Args:
        mean: Mean of each channel, 0..255.
        std: Standard deviation of each channel, 0..255.
        size_divisibility: Multiple to pad to; 0 or 1 for none.

    Raises:
        ValueError: If `size_divisibility` is negative, `mean` or `std` has other than three numbers, or a standard
            deviation is not positive.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        size_divisibility: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if size_divisibility < 0:
            raise ValueError(f"`size_divisibility` must not be negative. Received: {size_divisibility}")
        self.mean = _per_channel("mean", mean)
        self.std = _per_channel("std", std)
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive. Received: {self.std}")
        self.size_divisibility = size_divisibility

    def build(self, input_shape: tuple) -> None:
        self.built = True

    def call(self, images: Any, image_sizes: Any = None) -> Any:
        """Prepare a batch.

        Args:
            images: `(batch, height, width, 3)`, RGB 0..255, uint8 or float.
            image_sizes: `(batch, 2)` int32, height and width of each image in a padded batch; all of it when `None`.

        Returns:
            `(batch, padded height, padded width, 3)` in the compute dtype.
        """
        # Normalised in float32: half precision cannot hold 255 levels around a mean.
        x = ops.cast(images, "float32")
        x = (x - ops.convert_to_tensor(self.mean, "float32")) / ops.convert_to_tensor(self.std, "float32")
        x = ops.cast(x, self.compute_dtype)
        if image_sizes is not None:
            x = ops.where(inside(ops.shape(x)[1:3], image_sizes)[..., None], x, ops.zeros_like(x))
        _, height, width, _ = ops.shape(x)
        padded_height, padded_width = self.padded_size(height, width)
        return ops.pad(x, ((0, 0), (0, padded_height - height), (0, padded_width - width), (0, 0)))

    def padded_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Height and width after padding; integers or scalar tensors."""
        multiple = max(self.size_divisibility, 1)
        return tuple((side + multiple - 1) // multiple * multiple for side in (height, width))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mean": self.mean,
            "std": self.std,
            "size_divisibility": self.size_divisibility,
        }


def inside(size: tuple[Any, Any], image_sizes: Any) -> Any:
    """`(batch, height, width)` bool: which pixels of a padded batch belong to their image."""
    rows = ops.arange(size[0], dtype="int32")[None, :, None]
    columns = ops.arange(size[1], dtype="int32")[None, None, :]
    image_sizes = ops.cast(image_sizes, "int32")
    return ops.logical_and(rows < image_sizes[:, 0, None, None], columns < image_sizes[:, 1, None, None])


def _per_channel(name: str, values: Any) -> tuple[float, float, float]:
    channels = tuple(values)
    if len(channels) != 3 or not all(isinstance(value, Real) and math.isfinite(value) for value in channels):
        raise ValueError(f"`{name}` must be three numbers, one of each RGB channel. Received: {values!r}")
    return tuple(float(value) for value in channels)
