import keras
import numpy as np
import pytest

from kmaskformer.layers.position_embedding import SinePositionEmbedding


def embed(dim, height, width):
    encoded = SinePositionEmbedding(dim)(np.zeros((2, height, width, 7), "float32"))
    return np.asarray(encoded).reshape(height, width, dim)


def definition(dim, height, width):
    """The embedding in float64, channel by channel, from the paper's formula with the reference's constants."""
    half = dim // 2
    encoded = np.zeros((height, width, dim))
    rows = (np.arange(height) + 1) / (height + 1e-6) * 2 * np.pi
    columns = (np.arange(width) + 1) / (width + 1e-6) * 2 * np.pi
    for i in range(half):
        wave = np.cos if i % 2 else np.sin
        wavelength = 10000 ** (2 * (i // 2) / half)
        encoded[:, :, i] = wave(rows / wavelength)[:, None]
        encoded[:, :, half + i] = wave(columns / wavelength)[None, :]
    return encoded


def test_golden_values():
    encoded = embed(8, 2, 3)
    first = [1.343e-6, -1, 0.0314107, 0.9995065, 0.8660257, -0.4999994, 0.0209424, 0.9997807]
    last = [-2.686e-6, 1, 0.0627905, 0.9980267, -1.733e-6, 1, 0.0627905, 0.9980267]
    np.testing.assert_allclose(encoded[0, 0], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoded[1, 2], last, rtol=0, atol=1e-6)


def test_golden_sums():
    encoded = embed(256, 16, 16).astype("float64")
    assert encoded.sum() == pytest.approx(32328.09, rel=1e-6)
    assert np.abs(encoded).sum() == pytest.approx(36208.37, rel=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (40, 9)])
def test_equals_its_definition(size):
    np.testing.assert_allclose(embed(24, *size), definition(24, *size), rtol=0, atol=1e-6)


def test_dynamic_shape():
    inputs = keras.Input((None, None, 3))
    layer = SinePositionEmbedding(12)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (1, None, 12)
    for height, width in ((3, 4), (6, 2)):
        encoded = np.asarray(model(np.zeros((1, height, width, 3), "float32")))
        np.testing.assert_allclose(encoded.reshape(height, width, 12), definition(12, height, width), atol=1e-6)


def test_stays_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = SinePositionEmbedding(8)
    finally:
        keras.config.set_dtype_policy("float32")
    encoded = layer(np.zeros((1, 40, 50, 3), "float16"))
    assert keras.backend.standardize_dtype(encoded.dtype) == "float32"
    np.testing.assert_allclose(np.asarray(encoded).reshape(40, 50, 8), definition(8, 40, 50), atol=1e-6)


@pytest.mark.parametrize("dim", [0, 6, -4])
def test_dim_must_be_a_multiple_of_four(dim):
    with pytest.raises(ValueError, match=f"`dim` must be a positive multiple of 4. Received: dim={dim}"):
        SinePositionEmbedding(dim)
