"""Batches: shapes, padding, determinism, epochs, errors."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskformer.data import transforms
from kmaskformer.data.color import ssd_color
from kmaskformer.data.pipeline import evaluation_dataset, training_dataset
from kmaskformer.data.semantic_folder import SemanticFolder
from kmaskformer.data.synthetic import Shapes
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("a", "b"), (1,))
RECIPE = [
    partial(transforms.random_scale, low=0.7, high=1.3),
    partial(transforms.random_crop, size=(16, 24)),
    ssd_color,
    transforms.random_flip,
]


class Toy:
    """Images of different sizes; every pixel of image i is i, its table has 1 + i % 3 segments and a crowd."""

    info = INFO

    def __init__(self, count=7):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        height, width, segments = 20 + index, 30 - index, 2 + index % 3
        segment_map = np.arange(height * width, dtype=np.int32).reshape(height, width) % segments
        return {
            "image": np.full((height, width, 3), index, np.uint8),
            "segment_map": segment_map,
            "labels": np.full(segments, index % 2, np.int32),
            "is_crowd": np.arange(segments) == segments - 1,
            "image_id": f"bild {index} ä",
        }


def batches(dataset, count):
    return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in dataset.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def test_training_batches_pad_to_the_largest():
    dataset = training_dataset(Toy(), batch_size=3, shuffle=False)
    inputs, truth = batches(dataset, 1)[0]
    assert inputs["images"].shape == (3, 22, 30, 3) and truth["segment_map"].shape == (3, 22, 30)
    np.testing.assert_array_equal(inputs["image_sizes"], [[20, 30], [21, 29], [22, 28]])
    for index in range(3):
        height, width = inputs["image_sizes"][index]
        assert (inputs["images"][index, :height, :width] == index).all()
        assert (truth["segment_map"][index, height:] == -1).all()
        assert (truth["segment_map"][index, :, width:] == -1).all()
        assert truth["segment_map"][index].max() == index % 3
    np.testing.assert_array_equal(truth["valid"], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(truth["labels"], [[0, 0, 0], [1, 1, 0], [0, 0, 0]])


def test_fixed_sizes_are_static():
    dataset = training_dataset(Toy(), RECIPE, batch_size=2, image_size=(16, 24), max_segments=5)
    inputs, truth = dataset.element_spec
    assert inputs["images"] == tf.TensorSpec((2, 16, 24, 3), tf.uint8)
    assert inputs["image_sizes"] == tf.TensorSpec((2, 2), tf.int32)
    assert truth["segment_map"] == tf.TensorSpec((2, 16, 24), tf.int32)
    assert truth["labels"] == tf.TensorSpec((2, 5), tf.int32) and truth["valid"] == tf.TensorSpec((2, 5), tf.bool)
    assert len(batches(dataset, 5)) == 5


def test_an_image_larger_than_the_batch_is_refused():
    dataset = training_dataset(Toy(), batch_size=2, image_size=(16, 24))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images must fit into `image_size`.*\(16, 24\)"):
        batches(dataset, 1)


def test_facts_about_the_dataset():
    dataset = training_dataset(Toy(), batch_size=3)
    assert dataset.dataset_info is INFO and dataset.steps_per_epoch == 3
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    finite = training_dataset(Toy(), batch_size=3, repeat=False)
    assert finite.cardinality() == 3 and [len(x["images"]) for x, _ in finite] == [3, 3, 1]
    evaluation = evaluation_dataset(Toy(), batch_size=2)
    assert evaluation.dataset_info is INFO and evaluation.cardinality() == evaluation.steps_per_epoch == 4


def order(dataset, count):
    return [int(inputs["images"][0, 0, 0, 0]) for inputs, _ in dataset.take(count)]


def test_every_epoch_is_another_permutation():
    dataset = training_dataset(Toy(), batch_size=1, seed=1)
    drawn = np.array(order(dataset, 70)).reshape(10, 7)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(7), (10, 1)))
    assert len({tuple(epoch) for epoch in drawn}) > 7
    assert order(training_dataset(Toy(), batch_size=1, seed=2), 70) != drawn.ravel().tolist()
    assert order(training_dataset(Toy(), batch_size=1, shuffle=False), 9) == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_finite_passes_are_permutations_too():
    dataset = training_dataset(Toy(), batch_size=1, repeat=False, seed=1)
    passes = [order(dataset, -1) for _ in range(4)]
    assert all(sorted(one) == list(range(7)) for one in passes) and len(set(map(tuple, passes))) > 1
    again = training_dataset(Toy(), batch_size=1, repeat=False, seed=1)
    assert [order(again, -1) for _ in range(4)] == passes


def test_batches_depend_on_the_seed_alone():
    options = {"batch_size": 2, "image_size": (16, 24)}
    first = batches(training_dataset(Toy(), RECIPE, seed=5, workers=1, **options), 12)
    assert_same(first, batches(training_dataset(Toy(), RECIPE, seed=5, workers=4, **options), 12))
    assert_same(first, batches(training_dataset(Toy(), RECIPE, seed=5, cache=True, **options), 12))
    resumed = training_dataset(Toy(), RECIPE, seed=5, first_batch=9, **options)
    assert_same(first[9:], batches(resumed, 3))
    other = batches(training_dataset(Toy(), RECIPE, seed=6, **options), 12)
    assert any((a[0]["images"] != b[0]["images"]).any() for a, b in zip(first, other, strict=True))


def test_augmentation_differs_between_epochs():
    """One image, drawn again and again, is never cut the same way for long."""
    crop = [partial(transforms.random_crop, size=(40, 40))]
    dataset = training_dataset(Shapes(1), crop, batch_size=1, seed=3)
    assert len({batch[0]["images"].tobytes() for batch in batches(dataset, 10)}) == 10


def test_cache_reads_each_sample_once():
    reader = Toy()
    assert len(batches(training_dataset(reader, batch_size=7, cache=True), 10)) == 10
    assert reader.reads == 7


def test_evaluation_batches_hold_the_truth_at_its_size():
    dataset = evaluation_dataset(Toy(), shortest_edge=10, longest_edge=14, batch_size=4)
    inputs, truth = batches(dataset, 1)[0]
    np.testing.assert_array_equal(inputs["image_sizes"][:2], [[9, 14], [10, 14]])
    np.testing.assert_array_equal(truth["original_size"], [[20 + i, 30 - i] for i in range(4)])
    assert truth["segment_map"].shape == (4, 23, 30) and inputs["images"].shape == (4, 10, 14, 3)
    assert (truth["segment_map"][1, 21:] == -1).all() and (truth["segment_map"][1, :, 29:] == -1).all()
    np.testing.assert_array_equal(truth["is_crowd"][0], [False, True, False, False])
    np.testing.assert_array_equal(truth["valid"][0], [True, True, False, False])
    assert [value.decode() for value in truth["image_id"]] == [f"bild {i} ä" for i in range(4)]
    seen = [value for _, truth in dataset for value in truth["original_size"][:, 0].numpy()]
    assert seen == list(range(20, 27))


def test_bad_arguments():
    with pytest.raises(ValueError, match="The dataset 'toy' is empty"):
        training_dataset(Toy(0))
    with pytest.raises(ValueError, match="The dataset 'toy' is empty"):
        evaluation_dataset(Toy(0))
    with pytest.raises(ValueError, match=r"`batch_size` must be a positive integer. Received: batch_size=0"):
        training_dataset(Toy(), batch_size=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({name: -1}, f"`{name}` must not be negative. Received: {name}=-1")
            for name in ("max_segments", "min_area", "first_batch", "workers")
        ],
        ({"image_size": 64}, r"`image_size` must be a pair \(height, width\) of positive .*Received: image_size=64"),
        ({"image_size": (64.5, 64)}, r"Received: image_size=\(64\.5, 64\)"),
        ({"image_size": "ab"}, "Received: image_size='ab'"),
        ({"batch_shapes": [(8, 8), (8,)]}, r"`batch_shapes\[1\]` must be a pair"),
    ],
)
def test_numbers_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        training_dataset(Toy(), **options)


@pytest.mark.parametrize("name", ["shortest_edge", "longest_edge", "workers"])
def test_negative_numbers_of_an_evaluation(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be negative. Received: {name}=-5"):
        evaluation_dataset(Toy(), **{name: -5})


def test_a_broken_file_stops_fit_with_its_path(tmp_path):
    for index in range(3):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{index}.jpg")
        Image.fromarray(np.full((8, 8), 9 if index == 2 else 0, np.uint8)).save(tmp_path / f"{index}.png")
    reader = SemanticFolder("*.jpg", "{stem}.png", INFO, root=tmp_path)
    dataset = training_dataset(reader, batch_size=1)
    pairs = dataset.map(lambda x, y: (tf.cast(x["images"], tf.float32), tf.cast(y["segment_map"], tf.float32)))
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(1, 1)])
    model.compile(loss="mse")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"2.png: label maps of 'toy'.*Received: \[9\]"):
        model.fit(pairs, steps_per_epoch=6, verbose=0)
    (tmp_path / "2.jpg").write_text("no image")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"2.jpg: cannot be read as image"):
        batches(dataset, 6)


def test_under_a_distribution_strategy():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    dataset = strategy.experimental_distribute_dataset(training_dataset(Toy(), batch_size=2))
    inputs, _ = next(iter(dataset))
    assert inputs["images"].shape[0] == 2
