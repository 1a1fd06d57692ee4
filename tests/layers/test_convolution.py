import keras
import numpy as np
import pytest

from kmaskformer.layers.convolution import Convolution


def by_hand(x: np.ndarray, kernel: np.ndarray, strides: int, dilation: int) -> np.ndarray:
    """Convolution with PyTorch's padding, one output pixel after the other."""
    size = kernel.shape[0]
    margin, reach = dilation * (size // 2), dilation * (size - 1) + 1
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = ((side + 2 * margin - reach) // strides + 1 for side in x.shape[1:3])
    output = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * strides, column * strides
            patch = padded[:, top : top + reach : dilation, left : left + reach : dilation]
            output[:, row, column] = np.tensordot(patch, kernel, 3)
    return output


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
@pytest.mark.parametrize(
    ("kernel_size", "strides", "dilation"),
    [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 1, 4), (7, 2, 1)],
)
def test_padding_is_symmetric(size, kernel_size, strides, dilation, rng):
    layer = Convolution(4, kernel_size, strides, dilation)
    x = rng.standard_normal((2, *size, 3)).astype("float32")
    output = np.asarray(layer(x))
    np.testing.assert_allclose(output, by_hand(x, np.asarray(layer.kernel), strides, dilation), atol=1e-4)
    assert layer.compute_output_shape(x.shape) == output.shape
    assert layer.compute_output_shape((None, None, None, 3)) == (None, None, None, 4)


def test_norm_and_activation_follow(rng):
    layer = Convolution(4, 3, norm="frozen", activation="relu", name="conv")
    x = rng.standard_normal((1, 5, 5, 3)).astype("float32")
    layer.build(x.shape)
    layer.norm.offset.assign([1.0, -1.0, 0.0, 0.5])
    expected = by_hand(x, np.asarray(layer.kernel), 1, 1) / np.sqrt(1 + 1e-5) + [1.0, -1.0, 0.0, 0.5]
    np.testing.assert_allclose(layer(x), np.maximum(expected, 0), atol=1e-4)
    assert [v.path for v in layer.trainable_variables] == ["conv/kernel"]


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_frozen_norm_is_the_same_inside_the_kernel(use_bias, precision, rng):
    """Inference folds it; statistics are those of the outputs, whose means are far from 0."""
    layer = Convolution(16, 3, norm="frozen", use_bias=use_bias, activation="relu", dtype=precision)
    x = np.abs(rng.standard_normal((2, 9, 9, 8))).astype("float32")
    layer.build(x.shape)
    plain = by_hand(x, np.asarray(layer.kernel), 1, 1)
    if use_bias:
        layer.bias.assign(rng.standard_normal(16))
        plain = plain + np.asarray(layer.bias)
    mean, variance = plain.mean((0, 1, 2)), plain.var((0, 1, 2))
    scale, offset = rng.uniform(0.5, 2, 16), rng.standard_normal(16)
    for name, value in {"mean": mean, "variance": variance, "scale": scale, "offset": offset}.items():
        getattr(layer.norm, name).assign(value)
    expected = np.maximum((plain - mean) / np.sqrt(variance + 1e-5) * scale + offset, 0)
    for training in (False, True):
        found = keras.ops.cast(layer(x, training=training), "float32")
        tolerance = 1e-5 if precision == "float32" else 2e-2
        np.testing.assert_allclose(found, expected, atol=tolerance * expected.max())


@pytest.mark.parametrize(("norm", "use_bias", "expected"), [(None, None, 2), ("frozen", None, 1), ("frozen", True, 2)])
def test_bias_exists_where_no_norm_follows(norm, use_bias, expected):
    layer = Convolution(4, 3, norm=norm, use_bias=use_bias)
    layer.build((None, None, None, 3))
    assert len(layer.trainable_variables) == expected


def test_a_frozen_norm_of_a_tiny_variance_does_not_overflow_in_float16():
    layer = Convolution(4, 1, norm="frozen", dtype="mixed_float16")
    layer.build((1, 1, 1, 4))
    layer.kernel.assign(300 * np.eye(4)[None, None])
    layer.norm.variance.assign(np.full(4, 1e-9))
    layer.norm.mean.assign(np.full(4, 0.3))
    outputs = [np.asarray(layer(np.full((1, 1, 1, 4), 1e-3), training=training)) for training in (False, True)]
    assert np.isfinite(outputs[0]).all()
    np.testing.assert_array_equal(*outputs)


def test_config_round_trip():
    layer = Convolution(4, 3, strides=2, norm="batch", activation="relu", kernel_initializer="glorot_uniform")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd, so that padding is symmetric. Received: 4"):
        Convolution(4, 4)
    with pytest.raises(ValueError, match=r"a stride or a dilation, not both .* Received: strides=2, dilation=2"):
        Convolution(4, 3, strides=2, dilation=2)
