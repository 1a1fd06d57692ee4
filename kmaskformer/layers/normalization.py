"""Normalisation layers with PyTorch's constants: epsilon 1e-5 everywhere, statistics that may be frozen."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.ops.lean import lean_functions_help, lean_norm, moments, norm

EPSILON = 1e-5
NORM_KINDS = ("frozen", "batch", "group", "layer")


@keras.saving.register_keras_serializable(package="kmaskformer")
class FrozenBatchNormalization(keras.layers.Layer):
    """Batch normalisation whose statistics and affine parameters are constants.

    The published ResNet models keep the four vectors of their ImageNet training for ever: fine-tuning has too few
    images per device for useful batch statistics. The layer computes `x * multiplier + addend`, in float32 also under
    mixed precision, because `mean` may be large against the signal's spread.

    Args:
        epsilon: Added to the variance.

    Weights, all `(channels,)`, float32 and not trainable: `scale`, `offset`, `mean`, `variance`.
    """

    def __init__(self, epsilon: float = EPSILON, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        self.scale = self._add_constant("scale", "ones", channels)
        self.offset = self._add_constant("offset", "zeros", channels)
        self.mean = self._add_constant("mean", "zeros", channels)
        self.variance = self._add_constant("variance", "ones", channels)

    def call(self, inputs: Any) -> Any:
        """Normalises the last axis of `inputs`, any rank; the shape does not change."""
        multiplier, addend = self.constants()
        outputs = ops.cast(inputs, multiplier.dtype) * multiplier + addend
        return ops.cast(outputs, self.compute_dtype)

    def constants(self) -> tuple[Any, Any]:
        """What inputs are multiplied by, and what is added then; `(channels,)` float32."""
        multiplier = self.scale * ops.rsqrt(self.variance + self.epsilon)
        return multiplier, self.offset - self.mean * multiplier

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}

    def _add_constant(self, name: str, initializer: str, channels: int) -> keras.Variable:
        return self.add_weight(
            name=name, shape=(channels,), initializer=initializer, trainable=False, autocast=False, dtype="float32"
        )


@keras.saving.register_keras_serializable(package="kmaskformer")
class GroupNormalization(keras.layers.GroupNormalization):
    """Group normalisation of `(batch, height, width, channels)` that is as exact on large maps as on small ones.

    Keras averages over height, width and channels at once, which TensorFlow's CPU kernel does by adding up one number
    after the other in float32: at 128x160 pixels its result was off by 6e-5 of the largest value, and further at
    larger sizes. Averaging over one axis after the other, the error is 1e-6 at any size.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Normalises the channels of each group over the whole map; the shape does not change."""
        if lean_functions_help(training) and self.scale and self.center:
            x = lean_norm(self._grouped(inputs), *self._values(), self.epsilon, _map_mean)
            return ops.cast(ops.reshape(x, ops.shape(inputs)), self.compute_dtype)
        _, x, factor = moments(self._grouped(inputs), self.epsilon, _map_mean)
        scale, offset = self._values()
        # The small tensors first: each product with the map is one more pass over its memory.
        x = x * (factor if scale is None else factor * scale)
        x = x if offset is None else x + offset
        return ops.cast(ops.reshape(x, ops.shape(inputs)), self.compute_dtype)

    def _values(self) -> list[Any]:
        """Scale and offset, `(groups, channels of a group)` float32 or None."""
        weights = (self.gamma if self.scale else None, self.beta if self.center else None)
        shape = (self.groups, -1)
        return [None if weight is None else ops.reshape(ops.cast(weight, "float32"), shape) for weight in weights]

    def _grouped(self, x: Any) -> Any:
        batch, height, width, channels = ops.shape(x)
        return ops.reshape(x, (batch, height, width, self.groups, channels // self.groups))


@keras.saving.register_keras_serializable(package="kmaskformer")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer in fewer passes over the memory, of which TensorFlow keeps the input alone for the backward pass."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Normalises the last axis; the shape does not change."""
        if not self._is_plain(len(inputs.shape)):
            return super().call(inputs)
        if lean_functions_help(training):
            return self.normalize(inputs, *self.parameters())
        scale, offset = (ops.cast(weight, "float32") for weight in (self.gamma, self.beta))
        return ops.cast(norm(inputs, scale, offset, self.epsilon, _channel_mean), self.compute_dtype)

    def _is_plain(self, rank: int) -> bool:
        """Whether the last axis is normalised, scaled and moved, and float32 is exact enough."""
        axes = self.axis if isinstance(self.axis, list | tuple) else [self.axis]
        is_last = [axis % rank for axis in axes] == [rank - 1]
        return is_last and self.scale and self.center and not self.rms_scaling and self.compute_dtype != "float64"

    def parameters(self) -> tuple[Any, Any]:
        """Scale and offset, `(channels,)` float32; values, for a function with its own gradient reads no variables."""
        return tuple(ops.copy(ops.cast(weight, "float32")) for weight in (self.gamma, self.beta))

    def normalize(self, x: Any, scale: Any, offset: Any) -> Any:
        """The layer's function of its input and its `parameters`, for training."""
        return ops.cast(lean_norm(x, scale, offset, self.epsilon, _channel_mean), self.compute_dtype)


def _channel_mean(x: Any) -> Any:
    return ops.mean(x, axis=-1, keepdims=True)


def _map_mean(x: Any) -> Any:
    """Mean over height, width and channels of `(batch, height, width, groups, channels)`, axes kept."""
    for axis in (2, 1, 4):
        x = ops.mean(x, axis=axis, keepdims=True)
    return x


def make_norm(kind: str, name: str, **options: Any) -> keras.layers.Layer:
    """A normalisation layer of the last axis.

    Args:
        kind: `frozen` (constant batch norm), `batch` (trainable batch norm, momentum 0.9, which PyTorch calls 0.1),
            `group` (32 groups) or `layer`.
        name: Name of the layer.
        options: Further arguments of the layer, e.g. `groups` or `synchronized`, over the defaults above.

    Raises:
        ValueError: If `kind` is none of the four.
    """
    options = {"name": name, "epsilon": EPSILON, **options}
    if kind == "frozen":
        return FrozenBatchNormalization(**options)
    if kind == "batch":
        return keras.layers.BatchNormalization(**{"momentum": 0.9, **options})
    if kind == "group":
        return GroupNormalization(**{"groups": 32, **options})
    if kind == "layer":
        return LayerNormalization(**options)
    raise ValueError(f"`kind` of a normalisation must be one of {NORM_KINDS}. Received: kind={kind!r}")
