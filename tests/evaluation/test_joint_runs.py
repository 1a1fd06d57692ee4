"""Runs of two maps, against a count pixel by pixel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kmaskformer.evaluation.joint_runs import add_to_cells, joint_runs
from kmaskformer.evaluation.mean_iou import MeanIoU


def blocks(rng, size, cell, dtype):
    height, width = size
    coarse = rng.integers(0, 5, (-(-height // cell), -(-width // cell)))
    return np.kron(coarse, np.ones((cell, cell), np.int64))[:height, :width].astype(dtype)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 8), (17, 23), (64, 64)])
@pytest.mark.parametrize("cell", [1, 3, 9, 100])
@pytest.mark.parametrize(
    "dtypes", [(np.uint8, np.uint8), (np.int32, np.int64), (np.uint16, np.int8), (bool, np.uint64)]
)
def test_runs_hold_every_pixel_in_order(rng, size, cell, dtypes):
    first, second = (blocks(rng, size, cell, dtype) for dtype in dtypes)
    first_values, second_values, lengths = joint_runs(first, second)
    np.testing.assert_array_equal(np.repeat(first_values, lengths), first.reshape(-1))
    np.testing.assert_array_equal(np.repeat(second_values, lengths), second.reshape(-1))
    assert (first_values.dtype, second_values.dtype, lengths.dtype) == (*dtypes, np.int64)


def test_a_change_of_one_bit_anywhere_is_a_run():
    for place in range(1, 20):
        for dtype, bit in ((np.uint8, 7), (np.int16, 9), (np.int64, 40)):
            first = np.zeros((1, 100), dtype)
            first[0, place:] = 1 << bit
            _, _, lengths = joint_runs(first, np.zeros((1, 100), np.uint8))
            assert lengths.tolist() == [place, 100 - place]


def test_maps_without_pixels_have_no_runs():
    empty = np.zeros((0, 4), int)
    with ThreadPoolExecutor(1) as fresh:  # a thread that has no buffers yet
        assert [values.size for values in fresh.submit(joint_runs, empty, empty).result()] == [0, 0, 0]


def test_noise_comes_back_pixel_by_pixel(rng):
    first, second = rng.integers(0, 100, (2, 20, 20))
    assert joint_runs(first, second)[2].tolist() == [1] * 400


def test_threads_do_not_disturb_one_another(rng):
    pairs = [[blocks(rng, (50 + i % 3, 61), 1 + i % 7, np.uint8) for _ in range(2)] for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda pair: joint_runs(*pair), pairs))
    for (first, _), (values, _, lengths) in zip(pairs, results, strict=True):
        np.testing.assert_array_equal(np.repeat(values, lengths), first.reshape(-1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
def test_a_batch_counts_as_its_images_and_as_plain_bincount(rng, dtype):
    true, predicted = (np.stack([blocks(rng, (40, 33), cell, dtype) for cell in (1, 4, 11)]) for _ in range(2))
    batch, single = MeanIoU(6), MeanIoU(6)
    batch.update(predicted, true)
    for pair in zip(predicted, true, strict=True):
        single.update(*pair)
    codes = true.astype(np.int64) * 7 + predicted
    plain = np.bincount(codes.reshape(-1), minlength=42).reshape(6, 7)
    np.testing.assert_array_equal(batch.confusion, plain)
    np.testing.assert_array_equal(single.confusion, plain)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64])
def test_what_is_no_class_is_void_in_any_dtype(dtype):
    metric = MeanIoU(3, ignore_value=100)
    outside = 200 if dtype == np.uint8 else -56
    metric.update(np.array([[0, outside, 3, 100, 2]], dtype), np.array([[0, 1, 1, 1, 100]], dtype))
    np.testing.assert_array_equal(metric.confusion, [[1, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match=rf"Truth must hold class ids 0\.\.2 .*Received: \[{outside}\]"):
        metric.update(np.zeros((1, 2), dtype), np.array([[0, outside]], dtype))


def test_add_to_cells_is_exact_for_few_and_for_many_cells(rng):
    for size in (5, 5000):
        counts = np.full((4, 6), 2**40)
        rows, columns = rng.integers(0, 4, size), rng.integers(0, 6, size)
        lengths = rng.integers(1, 2**20, size)
        expected = counts.copy()
        np.add.at(expected, (rows, columns), lengths)
        add_to_cells(counts, 6 * rows + columns, lengths)
        np.testing.assert_array_equal(counts, expected)


def test_errors():
    with pytest.raises(ValueError, match=r"must have the same size.*prediction \(2, 1\), truth \(1, 2\)"):
        joint_runs(np.zeros((1, 2), int), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"must hold integers.*float64"):
        joint_runs(np.zeros((1, 2), int), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="must have the same size"):
        MeanIoU(2).update(np.zeros((1, 2, 2), int), np.zeros((2, 2, 2), int))
