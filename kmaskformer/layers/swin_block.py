"""The residual block of Swin Transformer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.dense import dense_after_norm, linear
from kmaskformer.layers.drop_path import DropPath
from kmaskformer.layers.normalization import make_norm
from kmaskformer.layers.window_attention import WindowAttention, join_windows, split_windows
from kmaskformer.ops.crop import crop_bottom_right
from kmaskformer.ops.lean import gelu, gelu_with_gradient, lean_functions_help


@keras.saving.register_keras_serializable(package="kmaskformer")
class SwinBlock(keras.layers.Layer):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`; see `SwinTransformer` for the arguments.

    With `shift`, windows lie `shift` pixels further down and right, so that information crosses their borders. With
    `recompute`, nothing in between is kept for the backward pass, which computes it again.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        qk_scale: float | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dim, self.num_heads, self.window_size, self.shift = dim, num_heads, window_size, shift
        self.mlp_ratio, self.qkv_bias, self.drop_rate = mlp_ratio, qkv_bias, drop_rate
        self.attention_drop_rate, self.drop_path_rate = attention_drop_rate, drop_path_rate
        self.qk_scale, self.recompute = qk_scale, recompute
        self.norm1 = make_norm("layer", name="norm1", dtype=policy)
        self.attn = WindowAttention(
            dim,
            num_heads,
            window_size,
            qkv_bias,
            attention_drop_rate,
            drop_rate,
            qk_scale,
            name="attn",
            dtype=policy,
        )
        self.norm2 = make_norm("layer", name="norm2", dtype=policy)
        self.mlp = SwinMLP(dim, int(dim * mlp_ratio), drop_rate, name="mlp", dtype=policy)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for layer in (self.norm1, self.norm2, self.mlp):
            layer.build(input_shape)
        self.attn.build((None, self.window_size**2, self.dim))

    def call(self, inputs: Any, window_mask: Any = None, training: bool | None = None) -> Any:
        """One block.

        Args:
            inputs: `(batch, height, width, dim)`.
            window_mask: Mask of the shifted windows (see `shifted_window_mask`); needed only with `shift`.
            training: Whether dropout and stochastic depth act.

        Returns:
            Same shape as `inputs`.
        """
        # Drawn outside of what is computed twice, where the second draw would be another one.
        factors = [self.drop_path.factor(inputs, training) for _ in range(2)]
        if not (self.recompute and training):
            return self._residuals(inputs, window_mask, training, *factors)
        return keras.remat(lambda x: self._residuals(x, window_mask, training, *factors))(inputs)

    def _residuals(
        self, inputs: Any, window_mask: Any, training: bool | None, attention_factor: Any, mlp_factor: Any
    ) -> Any:
        x = inputs + _scaled(self._attend(inputs, window_mask, training), attention_factor)
        hidden = dense_after_norm(self.mlp.fc1, self.norm2, x, self.mlp.rows, training)
        return x + _scaled(ops.reshape(self.mlp.contract(hidden, training), ops.shape(x)), mlp_factor)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift": self.shift,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "drop_rate": self.drop_rate,
            "attention_drop_rate": self.attention_drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "qk_scale": self.qk_scale,
            "recompute": self.recompute,
        }

    def _attend(self, x: Any, window_mask: Any, training: bool | None) -> Any:
        _, height, width, _ = ops.shape(x)
        qkv = dense_after_norm(self.attn.qkv, self.norm1, x, self._windows, training)
        windows = self.attn.mix(qkv, window_mask if self.shift else None, training)
        padded_height, padded_width = (side + -side % self.window_size for side in (height, width))
        x = join_windows(windows, self.window_size, padded_height, padded_width)
        if self.shift:
            x = ops.roll(x, (self.shift, self.shift), axis=(1, 2))
        return crop_bottom_right(x, height, width)

    def _windows(self, x: Any) -> Any:
        x = pad_to_multiple(x, self.window_size)
        if self.shift:
            x = ops.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        return split_windows(x, self.window_size)


@keras.saving.register_keras_serializable(package="kmaskformer")
class SwinMLP(keras.layers.Layer):
    """Linear, GELU, linear, with dropout after each linear layer."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.hidden_dim, self.drop_rate = dim, hidden_dim, drop_rate
        self.fc1 = linear(hidden_dim, dim, "fc1", self.dtype_policy)
        self.fc2 = linear(dim, hidden_dim, "fc2", self.dtype_policy)
        self.drop = keras.layers.Dropout(drop_rate, name="drop", dtype=self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden_dim))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(..., dim)` to the same shape."""
        return ops.reshape(self.contract(self.fc1(self.rows(inputs)), training), ops.shape(inputs))

    def rows(self, x: Any) -> Any:
        """Rows of a matrix: then nothing stands between product, bias and activation, and TensorFlow joins them."""
        return ops.reshape(x, (-1, self.dim))

    def contract(self, hidden: Any, training: bool | None = None) -> Any:
        """All that follows the first linear layer, `(rows, hidden_dim)` to `(rows, dim)`."""
        if lean_functions_help(training) and not self.drop_rate:
            return self.fc2.after(gelu_with_gradient, hidden)
        return self.drop(self.fc2(self.drop(gelu(hidden))))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = {"dim": self.dim, "hidden_dim": self.hidden_dim, "drop_rate": self.drop_rate}
        return {**super().get_config(), **config}


def _scaled(x: Any, factor: Any) -> Any:
    return x if factor is None else x * factor


def pad_to_multiple(x: Any, multiple: int) -> Any:
    """Zeros on the right and bottom of `(batch, height, width, channels)` up to multiples of `multiple`."""
    bottom, right = (-side % multiple for side in ops.shape(x)[1:3])
    if isinstance(bottom, int) and isinstance(right, int) and bottom == right == 0:
        return x
    return ops.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
