"""A backbone whose feature maps know where they are."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kmaskformer.backbones.features import FEATURES


@keras.saving.register_keras_serializable(package="kmaskformer")
class CoordinateBackbone(keras.layers.Layer):
    """A backbone with the coordinates of every pixel appended to its feature maps as further channels.

    The reference tells positions to the attention alone, never to the pixel embedding. Two things that look alike then
    differ by what the convolutions pick up at the borders of the image, which many images teach, and few do not. This
    is not in the paper; use it to train instances from random weights.

    Coordinates are sines and cosines of both axes with periods of twice the image's side, the side, half of it and so
    on; the sides are those of the padded image.

    Args:
        backbone: Any backbone.
        num_frequencies: Number of periods. The shortest is the side divided by `2 ** (num_frequencies - 2)`; about
            twice the width of the things that are to be told apart is short enough.
        name: Name of the layer.

    Raises:
        ValueError: If `num_frequencies` is not positive.

    References:
        - [CoordConv](https://arxiv.org/abs/1807.03247) and [SOLO](https://arxiv.org/abs/1912.04488), which append the
          coordinates themselves; [Fourier features](https://arxiv.org/abs/2006.10739)
    """

    def __init__(
        self, backbone: keras.layers.Layer, num_frequencies: int = 6, name: str = "backbone", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if num_frequencies < 1:
            raise ValueError(
                f"`num_frequencies` must be a positive integer. Received: num_frequencies={num_frequencies}"
            )
        self.backbone = backbone
        self.num_frequencies = num_frequencies

    @property
    def feature_channels(self) -> dict[str, int]:
        """Number of channels of each feature map."""
        return {name: count + 4 * self.num_frequencies for name, count in self.backbone.feature_channels.items()}

    @property
    def size_divisibility(self) -> int:
        """Multiple of the sides of images that the backbone inside asks for."""
        return self.backbone.size_divisibility

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.backbone.build(input_shape)

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        """The features of the backbone inside, each with `4 · num_frequencies` channels more.

        Args:
            images: `(batch, height, width, 3)`, normalised.
            training: Passed on.
        """
        features = self.backbone(images, training=training)
        return {name: self._append(features[name]) for name in FEATURES}

    def _append(self, feature: Any) -> Any:
        batch, height, width, _ = ops.shape(feature)
        rows, columns = self._waves(height), self._waves(width)
        count = 2 * self.num_frequencies
        coordinates = ops.concatenate(
            [
                ops.broadcast_to(rows[None, :, None], (batch, height, width, count)),
                ops.broadcast_to(columns[None, None], (batch, height, width, count)),
            ],
            axis=-1,
        )
        return ops.concatenate([feature, ops.cast(coordinates, feature.dtype)], axis=-1)

    def _waves(self, length: Any) -> Any:
        """`(length, 2 · num_frequencies)` float32: sines, then cosines, at the centres of the pixels."""
        centers = (ops.cast(ops.arange(length), "float32") + 0.5) / ops.cast(length, "float32")
        frequencies = ops.convert_to_tensor(math.pi * 2.0 ** np.arange(self.num_frequencies), "float32")
        angles = centers[:, None] * frequencies
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        shapes = self.backbone.compute_output_shape(input_shape)
        return {name: (*shapes[name][:-1], shapes[name][-1] + 4 * self.num_frequencies) for name in FEATURES}

    def get_config(self) -> dict[str, Any]:
        backbone = keras.saving.serialize_keras_object(self.backbone)
        backbone.pop("build_config", None)
        return {**super().get_config(), "backbone": backbone, "num_frequencies": self.num_frequencies}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CoordinateBackbone:
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})
