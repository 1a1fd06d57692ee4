"""Transforms: image and map stay aligned, eager and tf.data agree, numbers of the published recipes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskformer.data import transforms
from kmaskformer.data.transforms import (
    pad,
    random_crop,
    random_flip,
    random_quarter_turn,
    random_scale,
    random_scaled_crop,
    resize_shortest_edge,
    ssd_color,
)

HEIGHT, WIDTH = 40, 60

GEOMETRIC = {
    "resize_shortest_edge": partial(resize_shortest_edge, sizes=(20, 40, 80), longest_edge=100),
    "random_scale": partial(random_scale, low=0.5, high=2.0, stretch=0.2),
    "random_crop": partial(random_crop, size=(24, 32)),
    "random_scaled_crop": partial(random_scaled_crop, size=(24, 32), low=0.5, high=2.0),
    "random_flip": random_flip,
    "random_flip_vertical": partial(random_flip, vertical=True),
    "random_quarter_turn": random_quarter_turn,
    "pad": partial(pad, size=(64, 72)),
}
ALL = GEOMETRIC | {"ssd_color": ssd_color}


def coordinates(height: int = HEIGHT, width: int = WIDTH) -> dict:
    """A sample whose image holds `(4 row, 4 column, 200)` and whose map holds `row * width + column`."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([4 * rows, 4 * columns, np.full_like(rows, 200)], axis=-1).astype(np.uint8)
    return {
        "image": tf.constant(image),
        "segment_map": tf.constant((rows * width + columns).astype(np.int32)),
        "labels": tf.zeros(height * width, tf.int32),
        "is_crowd": tf.zeros(height * width, tf.bool),
        "image_id": tf.constant("coordinates"),
    }


def in_dataset(transform, sample: dict, seed: tuple[int, int]) -> dict:
    """What `transform` gives inside `tf.data`."""
    dataset = tf.data.Dataset.from_tensors((sample, tf.constant(seed))).map(transform)
    return next(iter(dataset))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", [(0, 1), (5, 2), (7, 7)])
def test_eager_and_graph_agree_and_the_contract_holds(name, seed):
    eager = ALL[name](coordinates(), tf.constant(seed))
    graph = in_dataset(ALL[name], coordinates(), seed)
    assert set(eager) == set(coordinates())
    for key in eager:
        np.testing.assert_array_equal(eager[key], graph[key])
    assert eager["image"].dtype == tf.uint8 and eager["segment_map"].dtype == tf.int32
    assert eager["image"].shape[:2] == eager["segment_map"].shape and eager["image"].shape[2] == 3


@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_map_stay_aligned(name):
    """Where the map says a pixel came from is what the image shows there."""
    for seed in range(20):
        sample = GEOMETRIC[name](coordinates(), tf.constant([3, seed]))
        image, origin = sample["image"].numpy().astype(float), sample["segment_map"].numpy()
        seen = origin >= 0
        rows, columns = origin[seen] // WIDTH, origin[seen] % WIDTH
        tolerance = [0.0, 0.0]
        if "resize" in name or "scale" in name:
            # Bilinear takes the middle of a target pixel, nearest the upper left; a source pixel is 4 levels.
            shrinking = [2.0, 2.0] if "crop" in name else [HEIGHT / origin.shape[0], WIDTH / origin.shape[1]]
            tolerance = [4 * (0.5 * factor + 0.5) + 0.5 for factor in shrinking]
        assert np.abs(image[..., 0][seen] - 4 * rows).max() <= tolerance[0]
        assert np.abs(image[..., 1][seen] - 4 * columns).max() <= tolerance[1]
        assert (image[..., 2][seen] == 200).all()


def test_a_whole_recipe_stays_aligned():
    recipe = [GEOMETRIC[name] for name in ("random_flip", "random_crop", "random_quarter_turn", "pad")]
    seen_anything = set()
    for seed in range(20):
        sample = transforms.apply_transforms(coordinates(), recipe, tf.constant([seed, 0]))
        image, origin = sample["image"].numpy(), sample["segment_map"].numpy()
        seen = origin >= 0
        np.testing.assert_array_equal(image[..., 0][seen], 4 * (origin[seen] // WIDTH))
        np.testing.assert_array_equal(image[..., 1][seen], 4 * (origin[seen] % WIDTH))
        assert (image[~seen] == 128).all() and seen.sum() == 24 * 32 and origin.shape == (64, 72)
        seen_anything.add(origin[0, 0])
    assert len(seen_anything) > 10


def test_each_transform_of_a_list_has_its_own_seed():
    draws = []

    def record(sample, seed):
        draws.append(tuple(seed.numpy()))
        return sample

    transforms.apply_transforms(coordinates(), [record, record], tf.constant([1, 2]))
    transforms.apply_transforms(coordinates(), [record], tf.constant([1, 3]))
    assert len(set(draws)) == 3


@pytest.mark.parametrize("size", [(20, 30), (37, 53), (80, 120), (11, 100)])
def test_image_resize_is_pillows(rng, size):
    """Bilinear with antialiasing, within the rounding to 8 bits that Pillow does after each axis."""
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    resized = transforms.resize_image(tf.constant(image), size).numpy().astype(int)
    assert np.abs(resized - expected).max() <= 1


def test_map_resize_is_pytorchs():
    halved = transforms.resize_map(tf.reshape(tf.range(8), (1, 8)), (1, 4))
    np.testing.assert_array_equal(halved, [[0, 2, 4, 6]])
    for length, new_length in [(8, 4), (7, 5), (5, 13), (683, 512), (480, 801), (1, 3)]:
        scale = np.float32(length) / np.float32(new_length)
        expected = np.minimum(np.floor(np.arange(new_length, dtype=np.float32) * scale), length - 1)
        for axis, shape in enumerate([(length, 1), (1, length)]):
            size = (new_length, 1) if axis == 0 else (1, new_length)
            resized = transforms.resize_map(tf.reshape(tf.range(length), shape), size)
            np.testing.assert_array_equal(np.ravel(resized), expected)


@pytest.mark.parametrize(
    ("height", "width", "shortest", "longest", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),
        (426, 640, 800, 1333, (800, 1202)),
        (300, 900, 800, 1333, (444, 1333)),
        (900, 300, 800, 1333, (1333, 444)),
        (683, 512, 512, 2048, (683, 512)),
        (100, 3, 1, 10, (10, 1)),
        (100, 200, 50, 0, (50, 100)),
    ],
)
def test_shortest_edge_size(height, width, shortest, longest, expected):
    assert tuple(transforms.shortest_edge_size(height, width, shortest, longest).numpy()) == expected


def test_shortest_edge_draws_every_size():
    drawn = {
        tuple(resize_shortest_edge(coordinates(), tf.constant([0, seed]), sizes=(20, 30, 40))["image"].shape[:2])
        for seed in range(40)
    }
    assert drawn == {(20, 30), (30, 45), (40, 60)}
    single = resize_shortest_edge(coordinates(), tf.constant([0, 0]), sizes=20)
    assert single["segment_map"].shape == (20, 30)


def test_scale_range():
    heights = [
        random_scale(coordinates(), tf.constant([0, seed]), low=0.5, high=1.5)["image"].shape[0] for seed in range(60)
    ]
    assert 20 <= min(heights) < 25 and 55 < max(heights) <= 60


def test_crop_reaches_every_place_and_is_clipped_to_the_image():
    corners = [
        random_crop(coordinates(4, 5), tf.constant([0, seed]), size=(3, 3))["segment_map"].numpy()[0, 0]
        for seed in range(120)
    ]
    assert set(corners) == {0, 1, 2, 5, 6, 7}
    assert min(np.bincount(corners)[[0, 1, 2, 5, 6, 7]]) > 8
    sample = random_crop(coordinates(), tf.constant([0, 0]), size=(100, 32))
    assert sample["segment_map"].shape == (HEIGHT, 32)
    whole = random_crop(coordinates(), tf.constant([0, 0]), size=(100, 100))
    np.testing.assert_array_equal(whole["image"], coordinates()["image"])


def test_scaled_crop_shows_the_scaled_share_of_the_image():
    for factor in (0.5, 1.0, 2.0):
        sample = random_scaled_crop(coordinates(), tf.constant([0, 3]), size=(12, 16), low=factor, high=factor)
        origin = sample["segment_map"].numpy()
        assert origin.shape == (12, 16)
        assert abs(np.ptp(origin // WIDTH) - 11 / factor) <= 1 and abs(np.ptp(origin % WIDTH) - 15 / factor) <= 1
    small = random_scaled_crop(coordinates(), tf.constant([0, 3]), size=(64, 64), low=0.5, high=0.5)
    assert small["segment_map"].shape == (20, 30)


@pytest.mark.parametrize("vertical", [False, True])
def test_flip_happens_half_the_time(vertical):
    flipped = 0
    for seed in range(200):
        sample = random_flip(coordinates(2, 3), tf.constant([1, seed]), vertical=vertical)
        result = sample["segment_map"].numpy().tolist()
        mirrored = [[3, 4, 5], [0, 1, 2]] if vertical else [[2, 1, 0], [5, 4, 3]]
        assert result in ([[0, 1, 2], [3, 4, 5]], mirrored)
        flipped += result == mirrored
    assert 75 < flipped < 125
    never = random_flip(coordinates(2, 3), tf.constant([1, 1]), probability=0.0)
    np.testing.assert_array_equal(never["segment_map"], coordinates(2, 3)["segment_map"])


def test_quarter_turns_are_all_drawn():
    turned = {
        tuple(random_quarter_turn(coordinates(2, 3), tf.constant([2, seed]))["segment_map"].numpy().ravel())
        for seed in range(40)
    }
    base = np.arange(6).reshape(2, 3)
    assert turned == {tuple(np.rot90(base, turns).ravel()) for turns in range(4)}


def test_pad_values_and_static_shapes():
    sample = pad(coordinates(2, 3), size=(4, 3))
    assert (sample["image"][2:].numpy() == 128).all() and (sample["segment_map"][2:].numpy() == -1).all()
    np.testing.assert_array_equal(sample["image"][:2], coordinates(2, 3)["image"])
    large = pad(coordinates(2, 3), size=(1, 1))
    assert large["image"].shape == (2, 3, 3)


def color_only(**strengths):
    """`ssd_color` with all changes but the given ones switched off."""
    off = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}
    return partial(ssd_color, **(off | strengths))


@pytest.fixture()
def photo(rng):
    return coordinates() | {"image": tf.constant(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))}


@pytest.fixture()
def grey_photo(rng):
    """Without colour, so that the way to HSV and back loses nothing."""
    return coordinates() | {"image": tf.constant(np.repeat(rng.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8), 3, -1))}


def changes(transform, sample, count=60):
    """Images that differ from the original, with how often."""
    original = sample["image"].numpy().astype(int)
    images = [transform(sample, tf.constant([9, seed]))["image"].numpy().astype(int) for seed in range(count)]
    return original, [image for image in images if np.abs(image - original).max() > 8]


def test_color_brightness(grey_photo):
    original, changed = changes(color_only(brightness=32.0), grey_photo)
    assert 15 < len(changed) < 45
    for image in changed:
        middle = (original > 40) & (original < 215)
        shift = (image - original)[middle]
        assert np.ptp(shift) <= 1 and -33 <= np.median(shift) <= 32


def test_color_contrast(grey_photo):
    original, changed = changes(color_only(contrast=(0.5, 0.5)), grey_photo)
    assert 15 < len(changed) < 45
    for image in changed:
        assert np.abs(image - original // 2).max() == 0


def test_color_saturation_zero_is_grey(photo):
    original, changed = changes(color_only(saturation=(0.0, 0.0)), photo)
    assert 15 < len(changed) < 45
    for image in changed:
        np.testing.assert_allclose(image, np.repeat(original.max(-1, keepdims=True), 3, -1), atol=2)


def test_color_hue_of_a_third_turn_swaps_channels():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = 200
    sample = coordinates(2, 2) | {"image": tf.constant(image)}

    class Fixed(float):
        """-hue..hue collapses to one value when both bounds are equal."""

        def __neg__(self):
            return self

    _, changed = changes(color_only(hue=Fixed(60.0)), sample)
    assert 15 < len(changed) < 45
    for result in changed:
        np.testing.assert_array_equal(result[0, 0], [0, 200, 0])


def test_color_hsv_round_trip_loses_little(photo):
    for seed in range(10):
        image = color_only()(photo, tf.constant([4, seed]))["image"].numpy().astype(int)
        # Hue is kept in steps of 2 degrees, as in 8-bit OpenCV: up to 1/60 of the range between channels.
        assert np.abs(image - photo["image"].numpy()).max() <= 6


def test_color_leaves_the_truth_alone(photo):
    for seed in range(5):
        sample = ssd_color(photo, tf.constant([0, seed]))
        assert sample["segment_map"] is photo["segment_map"] and sample["labels"] is photo["labels"]
