"""A convolution with PyTorch's padding, optionally followed by a normalisation and an activation."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.normalization import make_norm
from kmaskformer.ops.lean import add_bias


@keras.saving.register_keras_serializable(package="kmaskformer")
class Convolution(keras.layers.Layer):
    """Convolution, normalisation, activation: weights `kernel`, `bias` and sublayer `norm`.

    Padding is symmetric, `dilation * (kernel_size - 1) / 2` zeros on every side, as in PyTorch. Keras' "same" pads a
    strided convolution more on the right and bottom, which shifts features by a pixel against published weights.

    Args:
        filters: Number of output channels.
        kernel_size: Side of the kernel, odd.
        strides: Step in both directions.
        dilation: Distance of the kernel's taps in pixels.
        use_bias: Whether to add a bias. Defaults to having one exactly where no normalisation follows.
        norm: Kind of normalisation (see `make_norm`) or None.
        activation: Name of a Keras activation, or None.
        kernel_initializer: Defaults to He's normal initialisation over the fan-out, for layers before a ReLU.

    Raises:
        ValueError: If `kernel_size` is even, or both `strides` and `dilation` exceed 1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        dilation: int = 1,
        use_bias: bool | None = None,
        norm: str | None = None,
        activation: str | None = None,
        kernel_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, so that padding is symmetric. Received: {kernel_size}")
        if strides > 1 and dilation > 1:
            raise ValueError(
                "A convolution may have a stride or a dilation, not both (TensorFlow has no such kernel). "
                f"Received: strides={strides}, dilation={dilation}"
            )
        self.filters, self.kernel_size, self.strides, self.dilation = filters, kernel_size, strides, dilation
        self.use_bias = norm is None if use_bias is None else use_bias
        self.norm_kind = norm
        self.norm = None if norm is None else make_norm(norm, name="norm", dtype=self.dtype_policy)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer or he_fan_out())

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer=self.kernel_initializer,
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Convolves `(batch, height, width, channels)`; an output side is `floor((side - 1) / strides) + 1`."""
        kernel, bias, norm = self.kernel, self.bias, self.norm
        # In float16 a kernel divided by a tiny deviation may overflow.
        if self.norm_kind == "frozen" and not training and self.compute_dtype != "float16":
            kernel, bias = self._folded()
            norm = None
        margin = self.dilation * (self.kernel_size // 2)
        explicit = margin > 0 and self.strides > 1
        if explicit:
            inputs = ops.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        outputs = ops.conv(
            inputs,
            ops.cast(kernel, self.compute_dtype),
            strides=self.strides,
            padding="valid" if explicit else "same",
            data_format="channels_last",
            dilation_rate=self.dilation,
        )
        if bias is not None:
            outputs = add_bias(outputs, bias, training)
        if norm is not None:
            outputs = norm(outputs)
        return self.activation(outputs)

    def _folded(self) -> tuple[Any, Any]:
        """Kernel and bias with the constants of a frozen norm inside, so that a backend adds and activates at once.

        In training the two stay apart, and the step is that of the reference to the last digits.
        """
        multiplier, addend = self.norm.constants()
        if self.bias is not None:
            addend = addend + ops.cast(self.bias, "float32") * multiplier
        return ops.cast(self.kernel, "float32") * multiplier, ops.cast(addend, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, _ = input_shape
        return (batch, strided_size(height, self.strides), strided_size(width, self.strides), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation": self.dilation,
            "use_bias": self.use_bias,
            "norm": self.norm_kind,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def he_fan_out() -> keras.initializers.Initializer:
    """Normal distribution of variance `2 / fan_out`, PyTorch's `kaiming_normal_(mode="fan_out")`."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")


def strided_size(size: int | None, strides: int) -> int | None:
    """Side of the output of a symmetrically padded layer of odd kernel size; None stays None."""
    return None if size is None else (size - 1) // strides + 1
