"""Self-attention within square windows of a feature map, plain and shifted."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kmaskformer.layers.dense import linear
from kmaskformer.ops.lean import lean_functions_help, recomputed

MASKED_SCORE = -100.0
"""Added to the score of two pixels of a shifted window that are no neighbours in the image."""


@keras.saving.register_keras_serializable(package="kmaskformer")
class WindowAttention(keras.layers.Layer):
    """Multi-head self-attention among the pixels of each window, with a learned bias per relative position.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; must divide `dim`.
        window_size: Side of a window in pixels.
        qkv_bias: Whether the query, key and value projection has a bias.
        attention_drop_rate: Probability of dropping an attention weight during training.
        drop_rate: Probability of dropping an output during training.
        qk_scale: Factor of the products of queries and keys; None for 1 / sqrt(channels of a head).

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    References:
        - [Swin Transformer](https://arxiv.org/abs/2103.14030), section 3.2
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        qkv_bias: bool = True,
        attention_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        qk_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads <= 0 or dim % num_heads:
            raise ValueError(f"`num_heads` must divide `dim`. Received: dim={dim}, num_heads={num_heads}")
        self.dim, self.num_heads, self.window_size = dim, num_heads, window_size
        self.qkv_bias, self.attention_drop_rate, self.drop_rate = qkv_bias, attention_drop_rate, drop_rate
        self.qk_scale = qk_scale
        self.qkv = linear(3 * dim, dim, "qkv", self.dtype_policy, use_bias=qkv_bias)
        self.proj = linear(dim, dim, "proj", self.dtype_policy)
        self.attention_drop = keras.layers.Dropout(attention_drop_rate, name="attention_drop", dtype=self.dtype_policy)
        self.drop = keras.layers.Dropout(drop_rate, name="drop", dtype=self.dtype_policy)
        self.relative_position_index = relative_position_index(window_size)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.qkv.build(input_shape)
        self.proj.build(input_shape)
        # Truncation in the reference is at 100 standard deviations, that is, none.
        self.relative_position_bias_table = self.add_weight(
            name="relative_position_bias_table",
            shape=((2 * self.window_size - 1) ** 2, self.num_heads),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )

    def call(self, windows: Any, window_mask: Any = None, training: bool | None = None) -> Any:
        """Attention within each window.

        Args:
            windows: `(batch * num_windows, window_size ** 2, dim)`.
            window_mask: `(num_windows, window_size ** 2, window_size ** 2)` bool, True for pairs of pixels that must
                not attend to each other (see `shifted_window_mask`), or None.
            training: Whether dropout acts.

        Returns:
            Same shape as `windows`.
        """
        return self.mix(self.qkv(windows), window_mask, training)

    def mix(self, qkv: Any, window_mask: Any = None, training: bool | None = None) -> Any:
        """All that follows the projection to queries, keys and values, `(..., 3 * dim)`; otherwise as `call`."""
        length, head_dim = self.window_size**2, self.dim // self.num_heads
        qkv = ops.reshape(qkv, (-1, length, 3, self.num_heads, head_dim))
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
        scale = 1.0 / math.sqrt(head_dim) if self.qk_scale is None else self.qk_scale
        inputs = query * ops.cast(scale, query.dtype), key, value, self._position_bias()
        if lean_functions_help(training) and not self.attention_drop_rate:
            # The weights would be the largest of what a block keeps: more numbers than its pixels have channels.
            mixed = recomputed(lambda *inputs: self._attend(*inputs, window_mask), *inputs)
        else:
            mixed = self._attend(*inputs, window_mask)
        mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, length, self.dim))
        return self.drop(self.proj(mixed, training=training))

    def _attend(self, query: Any, key: Any, value: Any, position_bias: Any, window_mask: Any) -> Any:
        """Values `(windows, heads, pixels, channels)` mixed by the products of scaled queries and keys."""
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        # Softmax in float32: half precision has too few digits for the mask's -100 beside the scores.
        scores = ops.cast(scores, "float32") + position_bias
        if window_mask is not None:
            shape = ops.shape(scores)
            scores = ops.reshape(scores, (-1, ops.shape(window_mask)[0], *shape[1:]))
            scores = ops.reshape(scores + ops.cast(window_mask[:, None], "float32") * MASKED_SCORE, shape)
        return ops.matmul(self.attention_drop(ops.cast(ops.softmax(scores, axis=-1), value.dtype)), value)

    def compute_output_shape(self, windows_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return windows_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "qkv_bias": self.qkv_bias,
            "attention_drop_rate": self.attention_drop_rate,
            "drop_rate": self.drop_rate,
            "qk_scale": self.qk_scale,
        }

    def _position_bias(self) -> Any:
        """`(heads, query pixel, key pixel)` float32."""
        length = self.window_size**2
        bias = ops.take(self.relative_position_bias_table, self.relative_position_index.reshape(-1), axis=0)
        return ops.cast(ops.transpose(ops.reshape(bias, (length, length, self.num_heads)), (2, 0, 1)), "float32")


def relative_position_index(window_size: int) -> np.ndarray:
    """Row of the bias table for each pair of pixels of a window.

    Returns:
        `(window_size ** 2, window_size ** 2)` int32, query pixel first; pixels are counted row by row.
    """
    rows, columns = np.divmod(np.arange(window_size**2), window_size)
    row_offsets = rows[:, None] - rows[None, :] + window_size - 1
    column_offsets = columns[:, None] - columns[None, :] + window_size - 1
    return (row_offsets * (2 * window_size - 1) + column_offsets).astype("int32")


def split_windows(x: Any, window_size: int) -> Any:
    """`(batch, height, width, channels)` to `(batch * num_windows, window_size ** 2, channels)`.

    Height and width must be multiples of `window_size`. Windows are counted row by row.
    """
    batch, height, width, channels = ops.shape(x)
    rows, columns = height // window_size, width // window_size
    x = ops.reshape(x, (batch, rows, window_size, columns, window_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, window_size**2, channels))


def join_windows(windows: Any, window_size: int, height: Any, width: Any) -> Any:
    """Inverse of `split_windows`; `height` and `width` are those of the feature map."""
    channels = windows.shape[-1]
    rows, columns = height // window_size, width // window_size
    x = ops.reshape(windows, (-1, rows, columns, window_size, window_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))


def shifted_window_mask(height: Any, width: Any, window_size: int, shift: int) -> Any:
    """Keeps pixels apart that only the cyclic shift made neighbours.

    Args:
        height: Height of the feature map, a multiple of `window_size`; a number or an int32 scalar tensor.
        width: Its width, likewise.
        window_size: Side of a window.
        shift: Rows and columns by which the map was rolled up and left.

    Returns:
        `(num_windows, window_size ** 2, window_size ** 2)` bool, True for two pixels of different regions.
    """
    regions = 3 * _regions(height, window_size, shift)[:, None] + _regions(width, window_size, shift)[None, :]
    regions = split_windows(regions[None, :, :, None], window_size)[:, :, 0]
    return ops.not_equal(regions[:, :, None], regions[:, None, :])


def _regions(size: Any, window_size: int, shift: int) -> Any:
    """Per row of a rolled map: 0, or 1 within the last window, or 2 within the rows that were rolled in."""
    index = ops.arange(size, dtype="int32")
    return ops.cast(index >= size - window_size, "int32") + ops.cast(index >= size - shift, "int32")
