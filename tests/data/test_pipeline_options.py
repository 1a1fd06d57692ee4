"""Options of the pipeline: shards, listed shapes, broken samples, caches, decoding at a reduced size."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kmaskformer as kmf
from kmaskformer.data import transforms
from kmaskformer.data.batch_images import batch_images
from kmaskformer.data.cache import DiskCache
from kmaskformer.data.images import read_pair
from kmaskformer.data.inspection import read_facts
from kmaskformer.data.instance_folder import InstanceFolder
from kmaskformer.data.merged import MergedSegments
from kmaskformer.data.pipeline import evaluation_dataset, training_dataset
from kmaskformer.data.skipping import SkippingReader
from kmaskformer.data.synthetic import Shapes
from kmaskformer.evaluation.evaluator import Truth
from kmaskformer.structures import DatasetInfo

CROP = [partial(transforms.random_crop, size=(4, 5))]


class Numbered:
    """Images of one size that hold their number; those in `broken` cannot be read."""

    info = kmf.DatasetInfo("numbered", ("a", "b"))

    def __init__(self, count=10, broken=(), size=(6, 8)):
        self.count, self.broken, self.size, self.reads = count, set(broken), size, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise ValueError(f"{index}.png: cannot be read as image")
        height, width = self.size if not callable(self.size) else self.size(index)
        return {
            "image": np.full((height, width, 3), index, np.uint8),
            "segment_map": np.arange(height * width, dtype=np.int32).reshape(height, width) % 2,
            "labels": np.array([0, 1], np.int32),
            "is_crowd": np.zeros(2, bool),
            "image_id": str(index),
        }


def batches(dataset, count=-1):
    return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in dataset.take(count)]


def numbers(dataset, count=-1):
    return [inputs["images"][:, 0, 0, 0].tolist() for inputs, _ in batches(dataset, count)]


@pytest.mark.parametrize("first_batch", [0, 3])
def test_shards_together_are_the_batches_of_one_process(first_batch):
    options = {"transforms": CROP, "batch_size": 6, "seed": 3, "first_batch": first_batch}
    whole = batches(training_dataset(Numbered(), **options), 5)
    parts = [batches(training_dataset(Numbered(), shard=(index, 3), **options), 5) for index in range(3)]
    for number, (inputs, truth) in enumerate(whole):
        for key, values in {**inputs, **truth}.items():
            together = np.concatenate([{**part[number][0], **part[number][1]}[key] for part in parts])
            np.testing.assert_array_equal(together, values)


def test_a_shard_reads_its_own_samples_only():
    reader = Numbered(12)
    dataset = training_dataset(reader, batch_size=4, shuffle=False, shard=(1, 2), workers=1)
    assert numbers(dataset, 3) == [[2, 3], [6, 7], [10, 11]]
    policy = dataset.options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.OFF
    assert set(reader.reads[:6]) <= {2, 3, 6, 7, 10, 11}
    single = training_dataset(Numbered(), batch_size=4)
    assert single.options().experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.DATA


@pytest.mark.parametrize("options", [{"shard": (2, 2)}, {"shard": (0, 3)}, {"shard": (0, 2), "repeat": False}])
def test_shards_that_cannot_be(options):
    with pytest.raises(ValueError, match="`shard` must be"):
        training_dataset(Numbered(), batch_size=4, **options)


def test_batches_take_the_smallest_listed_shape():
    def size(index):
        return ((6, 8), (8, 6), (7, 7))[index % 3]

    shapes = [(8, 8), (6, 8), (8, 6)]
    dataset = training_dataset(Numbered(3, size=size), batch_size=1, shuffle=False, batch_shapes=shapes)
    found = batches(dataset, 3)
    assert [inputs["images"].shape[1:3] for inputs, _ in found] == [(6, 8), (8, 6), (8, 8)]
    assert [truth["segment_map"].shape[1:] for _, truth in found] == [(6, 8), (8, 6), (8, 8)]
    inputs, truth = found[2]
    assert (truth["segment_map"][0, 7:] == -1).all() and (truth["segment_map"][0, :7, :7] >= 0).all()
    assert inputs["image_sizes"].tolist() == [[7, 7]] and (inputs["images"][0, :, 7:] == 0).all()
    too_small = training_dataset(Numbered(), batch_size=2, batch_shapes=[(4, 9), (9, 4)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`batch_shapes` must hold a shape"):
        batches(too_small, 1)
    with pytest.raises(ValueError, match="not both"):
        training_dataset(Numbered(), image_size=(6, 8), batch_shapes=shapes)


def test_overlapping_masks_take_the_listed_shape_too():
    class Overlapping(Numbered):
        has_overlaps = True

        def __getitem__(self, index):
            return {**super().__getitem__(index), "membership": np.array([[True, True], [False, True]])}

    dataset = training_dataset(Overlapping(2), batch_size=2, batch_shapes=[(8, 8)])
    _, truth = batches(dataset, 1)[0]
    assert truth["masks"].shape == (2, 2, 8, 8) and truth["masks"][0, 0].sum() == 48 == 2 * truth["masks"][0, 1].sum()


def test_broken_samples_are_replaced_and_listed():
    reader = Numbered(6, broken=(1, 5))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"1\.png: cannot be read"):
        numbers(training_dataset(reader, batch_size=6, shuffle=False), 1)
    dataset = training_dataset(reader, batch_size=3, shuffle=False, on_error="skip")
    assert numbers(dataset, 2) == [[0, 2, 2], [3, 4, 0]]
    assert sorted(dataset.skipped.skipped) == [1, 5]
    report = dataset.skipped.report().splitlines()
    assert report[0] == "2 of 6 samples of 'numbered' were left out:"
    assert report[1:] == ["  1: 1.png: cannot be read as image", "  5: 5.png: cannot be read as image"]
    assert training_dataset(reader, batch_size=3).skipped is None
    with pytest.raises(ValueError, match="on_error='ignore'"):
        training_dataset(reader, on_error="ignore")


def test_broken_samples_are_left_out_of_an_evaluation():
    dataset = evaluation_dataset(Numbered(6, broken=(1, 5)), batch_size=3, on_error="skip")
    assert numbers(dataset) == [[0, 2, 3], [4]]
    assert len(dataset.skipped.skipped) == 2


def test_nothing_that_can_be_read():
    with pytest.raises(ValueError, match=r"None of the 2 samples of 'numbered' can be read. First failure: 0\.png"):
        SkippingReader(Numbered(2, broken=(0, 1)))[0]
    assert SkippingReader(Numbered(2)).report() == ""


def test_names_that_are_no_utf8(tmp_path):
    """Read, cached, listed and named in errors; what stands for their bytes can be printed."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / folder / os.fsdecode(b"bild\xff.png"))
    reader = kmf.data.from_folders("images", "masks", ["a"], root=tmp_path)
    for cache in (False, tmp_path / "cache", tmp_path / "cache"):
        inputs, _ = next(iter(training_dataset(reader, batch_size=1, cache=cache)))
        assert inputs["images"].shape == (1, 6, 8, 3)
    _, targets = next(iter(evaluation_dataset(reader)))
    assert targets["image_id"].numpy().tolist() == [rb"bild\udcff"]
    assert Truth.of_sample(reader[0]).image_id == r"bild\udcff"
    assert batch_images(reader, 0, 1, 0) == [str(tmp_path / r"images/bild\udcff.png")]
    assert read_facts(reader, "train", progress=False).readable[0].image_id == r"bild\udcff"
    (tmp_path / "images" / os.fsdecode(b"bild\xff.png")).write_bytes(b"")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bild\\udcff\.png: cannot be read as image"):
        next(iter(training_dataset(reader, batch_size=1)))
    skipping = SkippingReader(reader)
    assert skipping.get(0) is None and r"bild\udcff.png: cannot be read" in skipping.report()


def test_a_cache_on_disk_is_read_by_the_next_run(tmp_path):
    first, second = Numbered(4), Numbered(4)
    options = {"transforms": CROP, "batch_size": 2, "seed": 1}
    plain = batches(training_dataset(Numbered(4), **options), 4)
    for reader in (first, second):
        cached = batches(training_dataset(reader, cache=tmp_path / "cache", **options), 4)
        tf.nest.map_structure(np.testing.assert_array_equal, cached, plain)
    assert sorted(set(first.reads)) == [0, 1, 2, 3] and second.reads == []


def test_a_cache_on_disk_notices_changes(tmp_path):
    for kind, value in (("images", np.zeros((3, 4, 3), np.uint8)), ("masks", np.zeros((3, 4), np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(value).save(tmp_path / kind / "a.png")
    folders = (tmp_path / "images", tmp_path / "masks")

    def labels(classes):
        return DiskCache(kmf.data.from_folders(*folders, classes), tmp_path / "cache")[0]["labels"].tolist()

    assert labels(["a", "b"]) == [0] == labels(["a", "b"])
    assert labels({0: "b", 1: "a"}) == [0] and labels({1: "a", 255: "x", 0: "zero"}) == [0]
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / "a.png", compress_level=0)
    assert labels(["a", "b"]) == [1]
    stored = tmp_path / "cache" / "0.sample"
    stored.write_bytes(stored.read_bytes()[:-5])
    assert labels(["a", "b"]) == [1]


def test_large_jpegs_are_decoded_at_a_reduced_size(tmp_path):
    """A 96x160 JPEG of which 40 rows are needed is decoded at a half; the map follows."""
    rows, columns = np.mgrid[:96, :160]
    picture = np.stack([rows * 2, columns, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    Image.fromarray((columns // 40).astype(np.uint8)).save(tmp_path / "a.png")
    image, label_map = read_pair(tmp_path / "a.jpg", tmp_path / "a.png", least_edge=40)
    assert image.shape == (48, 80, 3) and label_map.shape == (48, 80)
    np.testing.assert_array_equal(label_map[0], np.arange(80) // 20)
    small = np.asarray(Image.fromarray(picture).resize((80, 48), Image.Resampling.BOX)).astype(int)
    assert np.abs(image - small).max() <= 3
    full, _ = read_pair(tmp_path / "a.jpg", tmp_path / "a.png", least_edge=60)
    assert full.shape == (96, 160, 3)
    Image.fromarray((columns[:95] // 40).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"height 96, width 160, and .* with height 95, width 160"):
        read_pair(tmp_path / "a.jpg", tmp_path / "a.png", least_edge=40)


def instance_files(folder):
    for kind in ("images", "maps"):
        (folder / kind).mkdir()
    Image.new("RGB", (4, 3)).save(folder / "images" / "a.png")
    Image.fromarray(np.array([[0, 1, 1, 0]] * 3, np.uint8)).save(folder / "maps" / "a.png")


def test_a_cache_on_disk_notices_other_options_of_the_reader(tmp_path):
    instance_files(tmp_path)

    def labels(background, wrap=lambda reader: reader):
        info = DatasetInfo("cells", ("cell", "rest"), thing_ids=(0,))
        reader = InstanceFolder("images", "maps", info, root=tmp_path, background=background)
        return DiskCache(SkippingReader(wrap(reader)), tmp_path / "cache")[0]["labels"].tolist()

    assert labels(None) == [0] and labels(None) == [0]
    assert labels("rest") == [1, 0]
    assert labels("rest", MergedSegments) == [0, 1]


def test_a_cache_on_disk_notices_another_size_of_generated_scenes(tmp_path):
    for size in ((32, 48), (48, 32)):
        assert DiskCache(Shapes(1, image_size=size), tmp_path / "cache")[0]["segment_map"].shape == size


def test_a_cache_on_disk_keeps_a_sample_and_never_its_substitute(tmp_path):
    for kind in ("images", "maps"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        Image.new("RGB", (4, 3), (50 * number,) * 3).save(tmp_path / "images" / f"{number}.png")
        Image.new("L", (4, 3), number % 2).save(tmp_path / "maps" / f"{number}.png")
    (tmp_path / "maps" / "1.png").write_bytes(b"damaged")
    reader = kmf.data.from_folders(tmp_path / "images", tmp_path / "maps", ["a", "b"])
    for _ in range(2):  # the second run reads what the first one kept
        dataset = training_dataset(
            reader, batch_size=3, shuffle=False, repeat=False, on_error="skip", cache=tmp_path / "cache"
        )
        ((inputs, _),) = list(dataset)
        assert [int(image[0, 0, 0]) for image in inputs["images"]] == [0, 100, 100]
        assert list(dataset.skipped.skipped) == [1]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["0.sample", "2.sample"]


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    instance_files(tmp_path)
    reader = InstanceFolder("images", "maps", DatasetInfo("cells", ("cell",), thing_ids=(0,)), root=tmp_path)

    def full(*arguments):
        raise OSError("no space left")

    cache = DiskCache(reader, tmp_path / "cache")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space left"):
        cache[0]
    assert list((tmp_path / "cache").iterdir()) == []
