"""The resize in the graph against Pillow's, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskformer import segmenter
from kmaskformer.data.transforms import shortest_edge_size
from kmaskformer.export.pillow_resize import resize_bilinear_uint8

SIZES = [
    ((33, 47), (64, 91)),
    ((64, 80), (21, 27)),
    ((50, 70), (50, 31)),
    ((90, 40), (7, 40)),
    ((5, 3), (1, 200)),
    ((200, 50), (160, 40)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_equals_pillow_in_every_pixel(rng, old, new):
    images = rng.integers(0, 256, (2, *old, 3), np.uint8)
    images[0, : old[0] // 2] = np.where(images[0, : old[0] // 2] > 127, 255, 0)
    result = resize_bilinear_uint8(tf.constant(images), tf.constant(new))
    assert result.dtype == tf.float32 and result.shape == (2, *new, 3)
    for image, resized in zip(images, result.numpy(), strict=True):
        expected = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(resized, expected)


def test_large_pictures_equal_pillow_too(rng):
    image = rng.integers(0, 256, (700, 933, 3), np.uint8)
    for new in ((480, 640), (800, 1066)):
        result = resize_bilinear_uint8(tf.constant(image[None]), tf.constant(new))[0]
        expected = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(result, expected)


def test_the_same_graph_serves_all_sizes(rng):
    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8), tf.TensorSpec((2,), tf.int32)]
    resize = tf.function(resize_bilinear_uint8, input_signature=signature, autograph=False)
    for old, new in SIZES[:2]:
        image = rng.integers(0, 256, (*old, 3), np.uint8)
        expected = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(resize(image[None], np.int32(new))[0], expected)


@pytest.mark.parametrize("edges", [(None, None), (800, 1333), (48, None), (None, 60), (7, 5), (1, None)])
def test_sizes_are_those_of_the_segmenter(edges):
    for size in ((480, 640), (33, 47), (47, 33), (1, 1), (1024, 2048), (427, 640), (3, 900)):
        expected = segmenter.shortest_edge_size(*size, *edges)
        assert tuple(shortest_edge_size(*size, *edges).numpy()) == expected, size
