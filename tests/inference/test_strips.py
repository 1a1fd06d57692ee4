"""Maps made strip by strip equal those made at once."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.restore import restore_pixel_logits
from kmaskformer.inference.semantic import pixel_map, semantic_inference, semantic_map
from kmaskformer.inference.strips import mean_semantic_map, pixel_view, semantic_map_in_strips, strip_height

PADDED = (32, 48)


@pytest.mark.parametrize("before_inference", [False, True])
@pytest.mark.parametrize("strip_bytes", [1, 20_000, 2**30])
@pytest.mark.parametrize(("image", "output"), [((30, 41), (45, 70)), ((32, 48), (11, 17)), ((29, 48), (29, 48))])
def test_strips_equal_the_whole(rng, before_inference, strip_bytes, image, output):
    class_logits = rng.normal(size=(1, 7, 6)).astype(np.float32) * 3
    mask_logits = rng.normal(size=(1, 7, 8, 12)).astype(np.float32) * 3
    sizes = (PADDED, image, output)
    expected = semantic_map(semantic_inference(class_logits, mask_logits, *sizes, before_inference))
    maps = semantic_map_in_strips(class_logits, mask_logits, *sizes, before_inference, strip_bytes)
    np.testing.assert_allclose(ops.convert_to_numpy(maps[1]), ops.convert_to_numpy(expected[1]), atol=1e-6)
    differ = ops.convert_to_numpy(maps[0]) != ops.convert_to_numpy(expected[0])
    assert differ.mean() < 0.002  # equal scores of two classes, to rounding


@pytest.mark.parametrize("strip_bytes", [1, 5_000, 2**30])
@pytest.mark.parametrize(("image", "output"), [((30, 41), (45, 70)), ((32, 48), (11, 17))])
def test_strips_of_a_per_pixel_model_equal_the_whole(rng, strip_bytes, image, output):
    logits = rng.normal(size=(1, 8, 12, 5)).astype(np.float32) * 3
    expected = pixel_map(restore_pixel_logits(logits, image, output))
    maps = mean_semantic_map([pixel_view(logits, image)], output, strip_bytes=strip_bytes)
    np.testing.assert_allclose(ops.convert_to_numpy(maps[1]), ops.convert_to_numpy(expected[1]), atol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(maps[0]), ops.convert_to_numpy(expected[0]))


def test_sizes_may_be_tensors_of_a_graph(rng):
    tf = pytest.importorskip("tensorflow")
    class_logits = rng.normal(size=(1, 7, 6)).astype(np.float32)
    mask_logits = rng.normal(size=(1, 7, 8, 12)).astype(np.float32)
    sizes = tf.constant([PADDED, (30, 41), (45, 70)])

    @tf.function(input_signature=[tf.TensorSpec((3, 2), tf.int32)])
    def run(sizes):
        return semantic_map_in_strips(class_logits, mask_logits, *((row[0], row[1]) for row in sizes_of(sizes)))

    def sizes_of(sizes):
        return [sizes[row] for row in range(3)]

    expected = semantic_map(semantic_inference(class_logits, mask_logits, PADDED, (30, 41), (45, 70)))
    np.testing.assert_allclose(run(sizes)[1], ops.convert_to_numpy(expected[1]), atol=1e-6)


def test_a_strip_fits_into_its_memory():
    height = int(strip_height(847, 100, (2048, 2048), (2048, 2048), 256 * 2**20))
    assert 3 <= height <= 20 and height * 2 * 847 * 2048 * 4 < 256 * 2**20
    assert int(strip_height(2, 3, (8, 8), (8, 8), 2**30)) == 8
    assert int(strip_height(847, 100, (2048, 2048), (2048, 2048), 1)) == 1
