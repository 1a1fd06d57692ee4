"""The segmenter, with a model that knows colours: query i finds what is red, green or blue."""

from __future__ import annotations

import io
import json

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from kmaskformer.inference.augmented import Augmentation
from kmaskformer.inference.tiles import Tiling
from kmaskformer.segmenter import Segmenter, as_pixels, shortest_edge_size
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("colors", ("red", "green", "blue"), thing_ids=(0, 2), colors=((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class ColorModel(keras.Model):
    """Mask logits from the colours at stride 4 of an image padded to a multiple of 8; three certain classes."""

    num_classes = 3
    dataset_info = INFO

    def padded_size(self, height, width):
        return -(-height // 8) * 8, -(-width // 8) * 8

    def call(self, images, image_sizes=None, training=None):
        _, height, width, _ = ops.shape(images)
        padded = self.padded_size(height, width)
        images = ops.cast(images, "float32")
        images = ops.pad(images, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
        features = ops.average_pool(images, 4, 4, "valid")
        class_logits = np.full((1, 4, 4), -4.0, "float32")
        class_logits[0, np.arange(4), np.arange(4)] = 4.0  # the fourth query is no object
        masks = ops.concatenate([features - 128.0, ops.ones_like(features[..., :1]) * 99], axis=-1)
        return {
            "class_logits": ops.convert_to_tensor(class_logits),
            "mask_logits": ops.transpose(masks, (0, 3, 1, 2)) / 16.0,
        }


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Left half red, right half green, with a blue block of 16 x 16 at row 16, column 8; multiples of 8 hold."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 1] = 255
    image[16:32, 8:24] = (0, 0, 255)
    return image


def as_bytes(image: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model():
    return ColorModel()


def summary(result):
    return [(row["id"], row["label"], row["is_thing"]) for row in result.segments]


def test_semantic_result(model):
    result = Segmenter(model)(picture())
    assert result.segmentation.shape == (48, 64) and result.segmentation.dtype == np.int32
    assert summary(result) == [(0, "red", True), (1, "green", False), (2, "blue", True)]
    expected = picture().argmax(-1)
    assert (result.segmentation != expected).mean() < 0.02
    for row in result.segments:
        assert row["area"] == (result.segmentation == row["id"]).sum()
        assert 0.9 < row["score"] <= 1
    assert sum(row["area"] for row in result.segments) == 48 * 64
    assert result.masks is None and result.task == "semantic"


def test_panoptic_result(model):
    result = Segmenter(model, task="panoptic")(picture())
    assert summary(result) == [(1, "red", True), (2, "green", False), (3, "blue", True)]
    assert (result.segmentation - 1 != picture().argmax(-1)).mean() < 0.02
    left, top, right, bottom = result.segments[2]["box"]
    assert abs(left - 8) <= 1 and abs(top - 16) <= 1 and abs(right - 24) <= 1 and abs(bottom - 32) <= 1


def test_instance_result_has_things_only_and_masks(model):
    result = Segmenter(model, task="instance")(picture())
    assert sorted(row["label"] for row in result.segments) == ["blue", "red"]
    assert [row["id"] for row in result.segments] == [1, 2]
    assert result.masks.shape == (2, 48, 64) and result.masks.dtype == bool
    for row, mask in zip(result.segments, result.masks, strict=True):
        assert row["area"] == mask.sum()
        assert (result.segmentation[mask & (result.segmentation > 0)] > 0).all()
    assert (result.segmentation[:, 40:] == 0).all()


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_general_inference(model, task):
    result = Segmenter(model, task=task, inference="general")(picture())
    shift = 0 if task == "semantic" else 1
    shown = [row["category_id"] for row in result.segments]
    assert sorted(shown) == ([0, 2] if task == "instance" else [0, 1, 2])
    blue = next(row["id"] for row in result.segments if row["label"] == "blue")
    assert (result.segmentation[20:28, 12:20] == blue).all() and blue >= shift


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_any_size_comes_back_at_its_own_size(model, task):
    rng = np.random.default_rng(1)
    native, resizing = Segmenter(model, task), Segmenter(model, task, shortest_edge=24, longest_edge=80)
    for size in ((48, 64), (33, 47), (7, 90), (1, 1)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        for segmenter in (native, resizing):
            result = segmenter(image)
            assert result.segmentation.shape == size and result.image.shape == (*size, 3)


def test_resizing_keeps_the_scene(model):
    original = Segmenter(model, "panoptic")(picture()).segmentation
    for options in ({"shortest_edge": 96}, {"shortest_edge": 24}, {"longest_edge": 32}):
        resized = Segmenter(model, "panoptic", **options)(picture()).segmentation
        assert (resized != original).mean() < 0.08, options


def test_one_graph_for_all_sizes_and_kinds(model):
    segmenter = Segmenter(model, task="panoptic")
    for image in (picture(), picture(64, 40), picture()[..., 0], picture().astype(np.float32)):
        segmenter(image)
    assert segmenter._predict.experimental_get_tracing_count() == 1


def test_path_bytes_pillow_and_arrays_are_the_same(model, tmp_path):
    image = picture()
    path = tmp_path / "scene.png"
    path.write_bytes(as_bytes(image))
    segmenter = Segmenter(model, "panoptic")
    expected = segmenter(image).segmentation
    kinds = [path, str(path), path.read_bytes(), Image.open(path), image.astype(np.float32), image.astype(np.int64)]
    kinds += [ops.convert_to_tensor(image), Image.open(path).convert("RGBA")]
    for kind in kinds:
        np.testing.assert_array_equal(segmenter(kind).segmentation, expected)
    several = segmenter([path, image])
    assert [result.segmentation.tolist() for result in several] == [expected.tolist()] * 2


def test_grey_arrays_and_deep_grey_pictures(model):
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(as_pixels(grey), expected)
    np.testing.assert_array_equal(as_pixels(grey[..., None]), expected)
    np.testing.assert_array_equal(as_pixels(Image.fromarray(grey)), expected)
    np.testing.assert_array_equal(as_pixels(Image.fromarray(grey.astype(np.uint16) * 257)), expected)


def test_open_files_are_read_and_what_is_no_picture_is_named():
    np.testing.assert_array_equal(as_pixels(io.BytesIO(as_bytes(picture()))), picture())
    with pytest.raises(TypeError, match=r"`image` must be a path, .*Received: NoneType"):
        as_pixels(None)


def test_sizes_are_those_of_the_evaluation_pipeline(rng):
    """One rule, in NumPy here and as a graph in the transforms."""
    from kmaskformer.data import transforms  # needs TensorFlow, and JAX runs this module without

    for height, width, shortest, longest in rng.integers(1, 1400, (200, 4)).tolist():
        ours = shortest_edge_size(height, width, shortest, longest)
        assert ours == tuple(transforms.shortest_edge_size(height, width, shortest, longest).numpy())


def test_rotated_photos_are_turned_upright(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stored = np.rot90(picture(), 1)
    path = tmp_path / "photo.png"
    path.write_bytes(as_bytes(np.ascontiguousarray(stored), exif=exif))
    for source in (path, Image.open(path)):
        result = Segmenter(model, "panoptic")(source)
        np.testing.assert_array_equal(result.image, picture())
        assert result.segmentation.shape == (48, 64)


def test_result_draws_and_saves(model, tmp_path):
    result = Segmenter(model, "panoptic")(picture())
    assert result.overlay().size == (64, 48)
    paths = result.save(tmp_path / "new", "scene")
    assert sorted(path.name for path in paths.values()) == ["scene.json", "scene_overlay.png", "scene_segmentation.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(paths["segmentation"])), result.segmentation)
    table = json.loads(paths["table"].read_text())
    assert (table["task"], table["height"], table["width"]) == ("panoptic", 48, 64)
    assert table["segments"][0]["label"] == "red" and table["segments"][0]["box"] == list(result.segments[0]["box"])


def test_saved_maps_keep_void_and_large_ids(model, tmp_path):
    result = Segmenter(model)(picture())
    result.segmentation = np.array([[-1, 3]], np.int32)
    result.image, result.segments = result.image[:1, :2], []
    assert np.asarray(Image.open(result.save(tmp_path, "a")["segmentation"])).tolist() == [[255, 3]]
    result.segmentation = np.array([[-1, 700]], np.int32)
    assert np.asarray(Image.open(result.save(tmp_path, "b")["segmentation"])).tolist() == [[65535, 700]]


def test_nothing_found_is_a_result(model):
    black = np.zeros((20, 20, 3), np.uint8)
    result = Segmenter(model, "panoptic")(black)
    assert result.segments == [] and not result.segmentation.any()
    np.testing.assert_array_equal(np.asarray(result.overlay()), black)


def test_a_model_without_names_has_numbered_classes(model):
    nameless = ColorModel()
    nameless.dataset_info = None
    assert Segmenter(nameless, "panoptic")(picture()).segments[0]["label"] == "class 0"
    with pytest.raises(ValueError, match='`task="instance"` needs thing classes, and `unnamed` has none'):
        Segmenter(nameless, "instance")
    with pytest.raises(ValueError, match=r"must describe the model's 3 classes\. Received: 2 classes"):
        Segmenter(nameless, dataset_info=DatasetInfo("two", ("a", "b")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"must have shape \(height, width, 3\).*Received: shape \(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"Received: shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"Received: shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), 300), "must be numbers 0..255. Received: int64 from 300 to 300"),
        (np.full((4, 4, 3), -1.0), "Received: float64 from -1 to -1"),
        (np.full((4, 4, 3), np.nan), "Received: float64 from nan to nan"),
        (np.full((4, 4, 3), 0.5), "looks like 0..1. Multiply them by 255"),
        (np.full((4, 4, 3), True), "Received: bool"),
        (b"no picture", "cannot be read as image"),
    ],
)
def test_what_is_no_picture_is_an_error(model, image, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(model)(image)


def test_missing_file_and_wrong_edges_are_errors(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        Segmenter(model)(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"`shortest_edge` must be a positive number of pixels.*shortest_edge=0"):
        Segmenter(model, shortest_edge=0)


@pytest.mark.parametrize(
    ("size", "edges", "expected"),
    [
        ((480, 640), (None, None), (480, 640)),
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 480), (800, 1333), (1067, 800)),
        ((300, 900), (800, 1333), (444, 1333)),
        ((480, 640), (None, 320), (240, 320)),
        ((480, 640), (None, 1000), (480, 640)),
        ((1, 500), (None, 100), (1, 100)),
    ],
)
def test_shortest_edge_size(size, edges, expected):
    assert shortest_edge_size(*size, *edges) == expected


JAX_PROGRAM = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from test_segmenter import ColorModel, Segmenter, picture
result = Segmenter(ColorModel(), "panoptic")(picture(33, 50))
np.testing.assert_array_equal(result.segmentation, np.load(sys.argv[2]))
print("equal")
"""


def test_jax_gives_the_same_without_tensorflow(model, tmp_path, repository, run_on_jax):
    np.save(tmp_path / "expected.npy", Segmenter(model, "panoptic")(picture(33, 50)).segmentation)
    assert run_on_jax(JAX_PROGRAM, repository / "tests", tmp_path / "expected.npy") == "equal\n"


@pytest.mark.parametrize("resize_twice", [False, True])
def test_test_time_augmentation_finds_the_same_blocks(resize_twice):
    augmentation = Augmentation((24, 48, 96), resize_twice=resize_twice)
    result = Segmenter(ColorModel(), augmentation=augmentation)(picture())
    plain = Segmenter(ColorModel())(picture())
    assert result.segmentation.shape == (48, 64)
    assert (result.segmentation == plain.segmentation).mean() > 0.97
    assert {segment["label"] for segment in result.segments} == {"red", "green", "blue"}


@pytest.mark.parametrize("options", [{"task": "panoptic"}, {"task": "instance"}, {"inference": "general"}])
def test_segments_of_several_views_are_not_averaged(options):
    with pytest.raises(ValueError, match="averages the class scores of pixels, which only default semantic inference"):
        Segmenter(ColorModel(), augmentation=Augmentation((24,)), **options)


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
@pytest.mark.parametrize("size", [(48, 64), (96, 128)])
def test_in_tiles_it_finds_the_same(model, task, size):
    options = {"task": task, "object_mask_threshold": 0.5, "overlap_threshold": 0.5}
    whole = Segmenter(model, **options)(picture(*size))
    tiled = Segmenter(model, **options, tiling=Tiling(32))(picture(*size))
    assert sorted(row["label"] for row in tiled.segments) == ["blue", "green", "red"]
    number_of = {row["label"]: row["id"] for row in whole.segments}
    for row in tiled.segments:
        np.testing.assert_array_equal(tiled.segmentation == row["id"], whole.segmentation == number_of[row["label"]])
        assert row["area"] == (tiled.segmentation == row["id"]).sum() and 0.9 < row["score"] <= 1


def test_tiles_of_a_resized_picture_end_at_its_own_size(model):
    result = Segmenter(model, task="panoptic", shortest_edge=96, tiling=Tiling(64))(picture(50, 70))
    assert result.segmentation.shape == (50, 70)
    assert sorted(row["label"] for row in result.segments) == ["blue", "green", "red"]
    truth = picture(50, 70).argmax(-1)
    for row in result.segments:
        assert ((result.segmentation == row["id"]) != (truth == row["category_id"])).mean() < 0.05


@pytest.mark.parametrize("options", [{"task": "instance"}, {"augmentation": Augmentation((24,))}])
def test_what_tiles_cannot_do_is_refused(model, options):
    with pytest.raises(ValueError, match="`tiling` is for semantic and panoptic results of one view"):
        Segmenter(model, tiling=Tiling(32), **options)
