"""The chains of transforms of the published recipes, step for step, and of the usual options."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import kmaskformer as kmf
from kmaskformer.build_data import build_transforms
from kmaskformer.config import load_config
from kmaskformer.data.augmentation import standard_transforms, transform_chain
from kmaskformer.data.transforms import apply_transforms

ADE20K_EDGES = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
COCO_EDGES = list(range(480, 801, 32))
PANOPTIC_EDGES = list(range(320, 1281, 64))


def steps(chain):
    """Names and options of the transforms."""
    return [(getattr(one, "func", one).__name__, dict(getattr(one, "keywords", {}).items())) for one in chain]


def recipe(repository, name):
    return steps(build_transforms(load_config(repository / "configs" / name).data.augmentation))


def test_semantic_mapper(repository):
    """Resize, crop, colour, flip, pad to the crop; labels by PyTorch's nearest."""
    resize = {"size": (512, 512), "sizes": ADE20K_EDGES, "longest_edge": 2048, "largest_class": 1.0}
    assert recipe(repository, "ade20k/semantic/maskformer_resnet50.yaml") == [
        ("random_resized_crop", {**resize, "nearest": "floor"}),
        ("ssd_color", {}),
        ("random_flip", {}),
        ("pad", {"size": (512, 512)}),
    ]


def test_panoptic_mapper(repository):
    """The same; segment ids by Pillow's nearest."""
    resize = {"size": (640, 640), "sizes": PANOPTIC_EDGES, "longest_edge": 2560, "largest_class": 1.0}
    assert recipe(repository, "ade20k/panoptic/maskformer_resnet50.yaml") == [
        ("random_resized_crop", {**resize, "nearest": "center"}),
        ("ssd_color", {}),
        ("random_flip", {}),
        ("pad", {"size": (640, 640)}),
    ]


@pytest.mark.parametrize(("model", "longest"), [("resnet50", 1333), ("swin_large", 1000)])
def test_coco_mapper(repository, model, longest):
    """Flip; half of the images cut after a resize to 400, 500 or 600; all resized. No colour, no padding."""
    crop = {"sizes": [400, 500, 600], "low": 384, "high": 600, "probability": 0.5, "nearest": "center"}
    assert recipe(repository, f"coco/panoptic/maskformer_{model}.yaml") == [
        ("random_flip", {}),
        ("random_range_crop", crop),
        ("resize_shortest_edge", {"sizes": COCO_EDGES, "longest_edge": longest, "nearest": "center"}),
    ]


def test_coco_images_come_out_by_both_ways():
    """A 480x640 image: whole it keeps its ratio of 4 to 3; cut it has another, and none is longer than allowed."""
    chain = transform_chain(shortest_edges=[48, 64], longest_edge=107, range_crop=(38, 60), range_crop_edges=(40, 60))
    sample = {
        "image": tf.zeros((48, 64, 3), tf.uint8),
        "segment_map": tf.zeros((48, 64), tf.int32),
        "labels": tf.constant([0]),
        "is_crowd": tf.constant([False]),
        "image_id": tf.constant("a"),
    }
    sizes = [apply_transforms(sample, chain, tf.constant([0, seed]))["image"].shape[:2] for seed in range(40)]
    whole = [size for size in sizes if size in ((48, 64), (64, 85))]
    assert 10 < len(whole) < 32
    assert all(min(size) in (48, 64) and max(size) <= 107 for size in sizes)


def test_other_options_in_their_order():
    chain = transform_chain(
        jitter_range=(0.1, 2.0), crop=(32, 32), largest_class=0.75, color=True, vertical_flip=True, quarter_turns=True
    )
    assert [name for name, _ in steps(chain)] == [
        "large_scale_jitter",
        "ssd_color",
        "random_quarter_turn",
        "random_flip",
        "random_flip",
        "pad",
    ]
    assert steps(chain)[0][1] == {
        "size": (32, 32),
        "low": 0.1,
        "high": 2.0,
        "largest_class": 0.75,
        "nearest": "floor",
    }
    assert [name for name, _ in steps(transform_chain(crop=(8, 8), horizontal_flip=False))] == ["random_crop", "pad"]
    assert transform_chain(horizontal_flip=False) == []


@pytest.mark.parametrize("options", [{"shortest_edges": [3], "scale_range": (0.5, 2)}, {"jitter_range": (0.1, 2)}])
def test_options_that_exclude_one_another(options):
    with pytest.raises(ValueError, match="Give one of `shortest_edges`, `scale_range` and `jitter_range`"):
        transform_chain(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest_edge": -1}, r"`longest_edge` must not be negative. Received: longest_edge=-1"),
        ({"shortest_edges": [32, -5]}, r"`shortest_edges` must be positive. Received: \(32, -5\)"),
        ({"crop": 64}, r"`crop` must be a pair \(height, width\) of positive whole numbers. Received: crop=64"),
        ({"crop": (64, 64, 3)}, r"Received: crop=\(64, 64, 3\)"),
        ({"crop": (64, 0)}, r"Received: crop=\(64, 0\)"),
    ],
)
def test_numbers_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        transform_chain(**options)


def test_quarter_turns_need_a_square_crop():
    with pytest.raises(ValueError, match=r"`quarter_turns` needs a square `crop`.*crop=\(32, 64\)"):
        transform_chain(crop=(32, 64), quarter_turns=True)


def test_five_lines_of_a_notebook(rng):
    """The README's way from arrays to batches."""
    pictures = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(5)]
    reader = kmf.data.from_examples([(picture, picture[..., 0] // 128) for picture in pictures], ["dark", "light"])
    train, val = kmf.data.split(reader, 0.2)
    batches = kmf.data.training_dataset(train, standard_transforms((32, 32)), batch_size=2, image_size=(32, 32))
    inputs, targets = next(iter(batches))
    assert inputs["images"].shape == (2, 32, 32, 3) and targets["segment_map"].shape == (2, 32, 32)
    assert len(list(kmf.data.evaluation_dataset(val))) == 1
