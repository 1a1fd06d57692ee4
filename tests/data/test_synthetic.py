"""Generated scenes: exact truth, determinism, variety."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from kmaskformer.data import synthetic
from kmaskformer.data.synthetic import SHAPES_INFO, Shapes
from kmaskformer.data.synthetic_classes import numbered_classes


def test_truth_is_a_partition_with_a_compact_table():
    reader = Shapes(40, image_size=(96, 128))
    for sample in reader:
        segment_map, labels = sample["segment_map"], sample["labels"]
        assert sample["image"].shape == (96, 128, 3) and sample["image"].dtype == np.uint8
        assert segment_map.shape == (96, 128) and segment_map.dtype == labels.dtype == np.int32
        np.testing.assert_array_equal(np.unique(segment_map), np.arange(len(labels)))
        assert not sample["is_crowd"].any() and sample["is_crowd"].shape == labels.shape
        stuff = [label for label in labels if label in SHAPES_INFO.stuff_ids]
        assert len(stuff) == len(set(stuff)) >= 1
        things = np.isin(labels, SHAPES_INFO.thing_ids)
        areas = np.bincount(segment_map.ravel())
        assert things.sum() <= 8 and (areas[things] >= 61).all()


def test_truth_is_what_is_painted(rng):
    """A flat shape on a flat ground shows exactly where the map says it is."""
    shapes = [synthetic._place_shape(rng, (128, 128)) for _ in range(6)]
    kept = synthetic._keep_visible(shapes, (128, 128))
    owner = synthetic._owner_map(kept, (128, 128))
    assert 1 <= len(kept) <= 6
    for index, shape in enumerate(kept):
        canvas = np.full((128, 128), -1)
        canvas[shape.rows, shape.columns][shape.distance < 0] = 0
        inside = canvas == 0
        above = np.isin(owner, range(index + 1, len(kept)))
        np.testing.assert_array_equal(owner == index, inside & ~above)


def test_hidden_shapes_are_taken_away():
    small, large = (np.full((100, 100), -1.0, np.float32) for _ in range(2))
    small[10:] = 1
    shape = synthetic._Shape("square", 40.0, slice(0, 100), slice(0, 100), small, small, small)
    cover = synthetic._Shape("square", 40.0, slice(0, 100), slice(0, 100), large, large, large)
    assert [s is cover for s in synthetic._keep_visible([shape, cover], (100, 100))] == [True]


def test_a_scene_depends_on_seed_and_index_alone():
    first, again, other = Shapes(5, seed=3), Shapes(9, seed=3), Shapes(5, seed=4)
    np.testing.assert_array_equal(first[4]["image"], again[4]["image"])
    np.testing.assert_array_equal(first[4]["segment_map"], again[4]["segment_map"])
    assert (first[4]["image"] != other[4]["image"]).mean() > 0.5
    assert (first[4]["image"] != first[3]["image"]).mean() > 0.5
    assert first[4]["image_id"] == "3_000004"


def test_every_class_occurs_and_color_does_not_tell_it():
    reader = Shapes(150, image_size=(64, 64))
    colors = {label: [] for label in range(SHAPES_INFO.num_classes)}
    for sample in reader:
        for index, label in enumerate(sample["labels"]):
            colors[int(label)].append(sample["image"][sample["segment_map"] == index].mean(axis=0))
    counts = [len(values) for values in colors.values()]
    assert min(counts) > 20
    # Colour hints at a kind of shape (chance is 1 in 6): the nearest mean colour is right for three in four.
    means = np.array([np.mean(colors[label], axis=0) for label in SHAPES_INFO.thing_ids])
    right = [
        np.argmin(np.linalg.norm(means - color, axis=1)) == index
        for index, label in enumerate(SHAPES_INFO.thing_ids)
        for color in colors[label]
    ]
    assert 0.7 < np.mean(right) < 0.8


@pytest.mark.parametrize("image_size", [(32, 32), (33, 200), (240, 100)])
def test_any_size(image_size):
    for sample in Shapes(5, image_size=image_size):
        assert sample["image"].shape == (*image_size, 3)
        np.testing.assert_array_equal(np.unique(sample["segment_map"]), np.arange(len(sample["labels"])))


def test_drawing_is_fast():
    """In the processor time of this process with all its threads, at its best, whatever else the machine does."""
    reader, seconds = Shapes(30), []
    for index in range(30):
        start = time.process_time()
        reader[index]
        seconds.append(time.process_time() - start)
    assert np.percentile(seconds, 20) < 0.03  # measured: 0.004


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`count` must be a positive number of scenes. Received: count=0"):
        Shapes(0)
    with pytest.raises(ValueError, match=r"at least 32 .* image_size=\(16, 64\)"):
        Shapes(1, image_size=(16, 64))
    with pytest.raises(ValueError, match="max_objects=0"):
        Shapes(1, max_objects=0)
    with pytest.raises(IndexError, match="Scene 3 of a dataset of 3"):
        Shapes(3)[3]


@pytest.mark.parametrize(("size", "digest"), [((96, 96), "497db14120e6a3b2"), ((64, 128), "2c5c32f2e53c65bf")])
def test_the_named_scenes_stay_the_same_for_ever(size, digest):
    """Scores in the README belong to these scenes."""
    content = hashlib.sha256()
    for seed in (0, 1000003):
        for sample in Shapes(6, image_size=size, seed=seed):
            for key in ("image", "segment_map", "labels"):
                content.update(sample[key].tobytes())
    assert content.hexdigest()[:16] == digest


@pytest.mark.parametrize(("num_classes", "num_things"), [(10, 6), (20, 12), (60, 36), (150, 90)])
def test_any_number_of_classes(num_classes, num_things):
    reader = Shapes(400, image_size=(32, 32), num_classes=num_classes)
    info = reader.info
    assert (info.num_classes, len(info.thing_ids), info.name) == (num_classes, num_things, f"shapes_{num_classes}")
    counts = np.zeros(num_classes, int)
    for sample in reader:
        counts[np.unique(sample["labels"])] += 1
        bands = [info.class_names[label].split()[0] for label in sample["labels"] if label in info.stuff_ids]
        assert len(bands) == len(set(bands))  # two variants of one texture are no neighbours
    assert (counts > 0).mean() > 0.9 and counts.sum() > 800


def test_variants_of_a_shape_look_different():
    """Two classes of one shape differ in pattern or in hue by four standard deviations."""
    for num_classes in (20, 60, 150):
        for looks in numbered_classes(num_classes).looks.values():
            for i, first in enumerate(looks):
                for second in looks[:i]:
                    distance = abs((first.hue - second.hue + 0.5) % 1 - 0.5)
                    assert first.pattern != second.pattern or distance > 4 * first.spread


def test_too_few_classes():
    with pytest.raises(ValueError, match=r"`num_classes` must be at least 10, or 0. Received: num_classes=9"):
        Shapes(1, num_classes=9)
