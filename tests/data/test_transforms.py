"""Transforms: image and map stay aligned, eager and tf.data agree, numbers of the published recipes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskformer.data import transforms
from kmaskformer.data.color import ssd_color
from kmaskformer.data.transforms import (
    large_scale_jitter,
    pad,
    random_crop,
    random_flip,
    random_quarter_turn,
    random_range_crop,
    random_resized_crop,
    random_scale,
    random_scaled_crop,
    resize_shortest_edge,
)
from kmaskformer.data.windows import nearest_positions, resize_image, resize_window

HEIGHT, WIDTH = 40, 60

GEOMETRIC = {
    "resize_shortest_edge": partial(resize_shortest_edge, sizes=(20, 40, 80), longest_edge=100),
    "random_scale": partial(random_scale, low=0.5, high=2.0, stretch=0.2),
    "resize_center": partial(resize_shortest_edge, sizes=(20, 40, 80), nearest="center"),
    "random_crop": partial(random_crop, size=(24, 32)),
    "random_crop_largest_class": partial(random_crop, size=(24, 32), largest_class=0.75),
    "random_scaled_crop": partial(random_scaled_crop, size=(24, 32), low=0.5, high=2.0, stretch=0.2),
    "random_resized_crop": partial(random_resized_crop, size=(24, 32), sizes=(20, 40, 80), largest_class=0.5),
    "scale_range_crop": partial(random_range_crop, sizes=(20, 30, 80), low=16, high=24),
    "scale_jitter": partial(large_scale_jitter, size=(36, 32), low=0.3, high=2.0),
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
        rows, columns = origin // WIDTH, origin % WIDTH
        for channel, axis, positions in ((0, 0, rows), (1, 1, columns)):
            # Bilinear takes the middle of a target pixel, nearest the upper left or the middle; a source pixel is 4
            # levels. How far apart pixels were, the map itself tells; a whole step never is more than half off.
            step = (
                np.ptp(positions[seen]) / max(positions.shape[axis] - 1, 1) if "s" in name and "cale" in name else 1.0
            )
            step = max(step, 1.0) if "resize" in name or "scale" in name else 0.0
            tolerance = 4 * (0.5 * step + 0.5) + 0.5 if step else 0.0
            assert np.abs(image[..., channel][seen] - 4 * positions[seen]).max() <= tolerance
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
    resized = resize_image(tf.constant(image), size).numpy().astype(int)
    assert np.abs(resized - expected).max() <= 1


def test_map_resize_is_pytorchs_or_pillows():
    """`floor` halves 0..7 to 0 2 4 6 as PyTorch does, `center` to 1 3 5 7 as Pillow does."""
    np.testing.assert_array_equal(nearest_positions(8, 4, 0, 4, "floor"), [0, 2, 4, 6])
    np.testing.assert_array_equal(nearest_positions(8, 4, 0, 4, "center"), [1, 3, 5, 7])
    for length, new_length in [(8, 4), (7, 5), (5, 13), (683, 512), (480, 801), (1, 3), (1000, 999)]:
        scale = np.float32(length) / np.float32(new_length)
        floor = np.minimum(np.floor(np.arange(new_length, dtype=np.float32) * scale), length - 1)
        np.testing.assert_array_equal(nearest_positions(length, new_length, 0, new_length, "floor"), floor)
        line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
        center = np.asarray(line.resize((new_length, 1), Image.Resampling.NEAREST))[0]
        np.testing.assert_array_equal(nearest_positions(length, new_length, 0, new_length, "center"), center)
        part = nearest_positions(length, new_length, new_length // 2, 1, "center")
        assert part.tolist() == [center[new_length // 2]]


@pytest.mark.parametrize("nearest", ["floor", "center"])
@pytest.mark.parametrize("size", [(20, 30), (37, 53), (80, 121), (40, 60), (97, 200)])
def test_a_window_is_what_cutting_the_whole_gives(rng, size, nearest):
    photo = coordinates() | {"image": tf.constant(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))}
    whole = resize_window(photo, size, nearest=nearest)
    expected = np.asarray(Image.fromarray(photo["image"].numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(whole["image"], expected)
    for top, left, height, width in [(0, 0, 5, 7), (11, 3, 9, 27), (size[0] - 8, size[1] - 13, 8, 13)]:
        part = resize_window(photo, size, (top, left, height, width), nearest)
        window = (slice(top, top + height), slice(left, left + width))
        np.testing.assert_array_equal(part["segment_map"], whole["segment_map"][window])
        # Pillow keeps the window's place in 32 bits, so that a few values are rounded to the next level.
        difference = np.abs(part["image"].numpy().astype(int) - expected[window])
        assert difference.max() <= 1 and (difference > 0).mean() < 0.1


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


@pytest.mark.parametrize(
    ("together", "first"),
    [
        (random_resized_crop, partial(resize_shortest_edge, sizes=(20, 50, 70), longest_edge=90)),
        (random_scaled_crop, partial(random_scale, low=0.4, high=1.7, stretch=0.3)),
    ],
)
def test_resize_and_crop_together_are_one_after_the_other(together, first):
    """Same seeds, same pixels: the published order, of which only the work that is thrown away is left out."""
    together = partial(together, size=(24, 32), **first.keywords)
    chain = [first, partial(random_crop, size=(24, 32))]
    for seed in range(12):
        seed = tf.constant([seed, 8])
        expected = transforms.apply_transforms(coordinates(), chain, seed)
        sample = together(coordinates(), seed)
        np.testing.assert_array_equal(sample["segment_map"], expected["segment_map"])
        assert np.abs(sample["image"].numpy().astype(int) - expected["image"].numpy()).max() <= 1


def test_large_scale_jitter_fits_the_image_first():
    """A 40x60 image fits into 80x80 at a factor of 4/3."""
    for factor, expected in ((0.5, (27, 40)), (1.0, (53, 80)), (2.0, (80, 80))):
        sample = large_scale_jitter(coordinates(), tf.constant([0, 1]), size=(80, 80), low=factor, high=factor)
        assert sample["image"].shape[:2] == sample["segment_map"].shape == expected
    origin = sample["segment_map"].numpy()
    assert abs(np.ptp(origin % WIDTH) - 79 / (8 / 3)) <= 1


def test_range_crop_takes_half_of_the_images_and_every_size():
    shapes = [
        tuple(random_range_crop(coordinates(), tf.constant([1, seed]), sizes=(30, 50), low=20, high=44)["image"].shape)
        for seed in range(200)
    ]
    cut = [shape[:2] for shape in shapes if shape != (HEIGHT, WIDTH, 3)]
    assert 75 < len(cut) < 125
    heights, widths = (np.array(sides) for sides in zip(*cut, strict=True))
    # 30 rows are cut to 20..30, 50 to 20..44; 45 or 75 columns to 20..44.
    assert heights.min() == 20 and 40 <= heights.max() <= 44 and widths.min() == 20 and 42 <= widths.max() <= 44


def test_a_crop_that_one_class_fills_is_drawn_again():
    """Class 1 is a strip of 10 of 60 columns: nearly all crops of 10 columns hold one class only."""
    columns = np.mgrid[:HEIGHT, :WIDTH][1]
    sample = coordinates() | {
        "segment_map": tf.constant((columns // 10 == 5).astype(np.int32)),
        "labels": tf.constant([3, 1]),
    }
    seeds = [tf.constant([0, seed]) for seed in range(60)]
    both = [len(np.unique(random_crop(sample, s, size=(10, 10))["segment_map"])) == 2 for s in seeds]
    cropped = [random_crop(sample, s, size=(10, 10), largest_class=0.75)["segment_map"].numpy() for s in seeds]
    shares = [max(np.mean(one == 0), np.mean(one == 1)) for one in cropped]
    # 5 of 51 places pass; ten draws find one of them with probability 1 - (46/51)^10 = 0.64.
    assert np.mean(both) < 0.35 and 0.45 < np.mean(np.array(shares) < 0.75) < 0.85
    void = sample | {"segment_map": tf.where(sample["segment_map"] == 1, 1, -1)}
    assert random_crop(void, seeds[0], size=(10, 10), largest_class=0.9)["segment_map"].shape == (10, 10)


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
