import numpy as np
import pytest

from kmaskformer.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing, inside


def normalized(images):
    return (images.astype("float64") - IMAGENET_MEAN) / IMAGENET_STD


def images(rng, *shape):
    return rng.integers(0, 256, (*shape, 3), dtype="uint8")


def test_normalises_then_pads_right_and_bottom_with_zeros(rng):
    batch = images(rng, 2, 37, 65)
    prepared = np.asarray(ImagePreprocessing()(batch))
    assert prepared.shape == (2, 64, 96, 3)
    np.testing.assert_allclose(prepared[:, :37, :65], normalized(batch), rtol=1e-5, atol=1e-6)
    assert not prepared[:, 37:].any() and not prepared[:, :, 65:].any()


@pytest.mark.parametrize(("divisibility", "expected"), [(32, (64, 96)), (0, (37, 65)), (1, (37, 65)), (16, (48, 80))])
def test_padded_size(rng, divisibility, expected):
    layer = ImagePreprocessing(size_divisibility=divisibility)
    assert layer.padded_size(37, 65) == expected
    assert layer(images(rng, 1, 37, 65)).shape == (1, *expected, 3)
    assert layer.padded_size(*expected) == expected


def test_everything_outside_an_images_size_is_zero(rng):
    batch = images(rng, 2, 40, 50)
    sizes = np.array([[40, 31], [17, 50]], "int32")
    prepared = np.asarray(ImagePreprocessing()(batch, sizes))
    for index, (height, width) in enumerate(sizes):
        np.testing.assert_allclose(
            prepared[index, :height, :width], normalized(batch[index, :height, :width]), atol=1e-5
        )
        assert not prepared[index, height:].any() and not prepared[index, :, width:].any()


def test_bytes_and_floats_are_the_same(rng):
    batch = images(rng, 1, 32, 32)
    expected = ImagePreprocessing()(batch)
    for dtype in ("float32", "float64", "int32"):
        np.testing.assert_array_equal(ImagePreprocessing()(batch.astype(dtype)), expected)


def test_normalises_in_float32_under_mixed_precision(rng):
    """Half precision holds 123.675 as 123.69: an error of 2e-4 that must not come before the subtraction."""
    batch = np.full((1, 32, 32, 3), 123.70, "float32")
    layer = ImagePreprocessing(dtype="mixed_float16", autocast=False)
    prepared = np.asarray(layer(batch))
    assert prepared.dtype == "float16"
    np.testing.assert_allclose(prepared.astype("float64"), normalized(batch), rtol=2e-3)


def test_own_mean_and_deviation(rng):
    batch = images(rng, 1, 32, 32)
    prepared = ImagePreprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))(batch)
    np.testing.assert_allclose(prepared, (batch - np.array([1.0, 2, 3])) / np.array([4.0, 5, 6]), rtol=1e-5)


def test_inside():
    mask = np.asarray(inside((2, 3), np.array([[1, 2], [2, 3]])))
    np.testing.assert_array_equal(mask, [[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]])


def test_impossible_arguments():
    with pytest.raises(ValueError, match=r"`size_divisibility` must not be negative. Received: -1"):
        ImagePreprocessing(size_divisibility=-1)
    with pytest.raises(ValueError, match=r"`mean` must be three numbers, one of each RGB channel. Received: 'xyz'"):
        ImagePreprocessing(mean="xyz")
    with pytest.raises(ValueError, match=r"`std` must be three numbers"):
        ImagePreprocessing(std=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"`std` must be positive. Received: \(1.0, 0.0, 1.0\)"):
        ImagePreprocessing(std=np.array([1, 0, 1], "float32"))
