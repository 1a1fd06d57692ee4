"""Batches of wide or of tall images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kmaskformer.data.aspect_ratio import WINDOW, is_tall
from kmaskformer.data.batch_images import batch_images
from kmaskformer.data.pipeline import training_dataset
from kmaskformer.data.subset import Subset
from kmaskformer.structures import DatasetInfo

SIZES = [(4, 6) if index % 3 else (6, 4) for index in range(40)]  # every third is tall
OPTIONS = {"batch_size": 4, "seed": 3, "aspect_ratio_grouping": True}


class Sized:
    """Images that hold their number, of known sizes."""

    info = DatasetInfo("sized", ("a",))

    def __init__(self, sizes=SIZES):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def image_size(self, index):
        return self.sizes[index]

    def __getitem__(self, index):
        return {
            "image": np.full((*self.sizes[index], 3), index, np.uint8),
            "segment_map": np.zeros(self.sizes[index], np.int32),
            "labels": np.zeros(1, np.int32),
            "is_crowd": np.zeros(1, bool),
            "image_id": str(index),
        }


def batches(count, **options):
    dataset = training_dataset(Sized(), **(OPTIONS | options))
    return [inputs["images"].numpy()[:, 0, 0, 0].tolist() for inputs, _ in dataset.take(count)]


def test_all_but_one_batch_of_a_window_are_of_one_kind():
    for start in (0, 2 * WINDOW):
        found = batches(WINDOW, first_batch=start)
        kinds = [{index % 3 == 0 for index in batch} for batch in found]
        assert sum(len(kind) > 1 for kind in kinds) <= 1
        tall = [kind == {True} for kind in kinds]
        assert 8 <= sum(tall) <= 13, "a third of the images"
        # Tall batches stand between wide ones, not at the end of the window.
        assert sum(a != b for a, b in itertools.pairwise(tall)) >= 3


def test_a_wide_batch_has_no_padding():
    dataset = training_dataset(Sized(), **OPTIONS)
    sizes = [tuple(inputs["images"].shape[1:3]) for inputs, _ in dataset.take(WINDOW)]
    assert sorted(set(sizes) - {(6, 6)}) == [(4, 6), (6, 4)] and sizes.count((6, 6)) <= 1


def test_every_image_comes_once_an_epoch():
    # Four windows of 32 batches of 5 are sixteen epochs of 40 images.
    counts = np.bincount(np.ravel(batches(4 * WINDOW, batch_size=5)), minlength=len(SIZES))
    assert counts.tolist() == [16] * len(SIZES)


def test_it_is_a_function_of_the_seed_and_the_batchs_number():
    plain = batches(WINDOW + 9)
    assert batches(12, first_batch=WINDOW - 3) == plain[WINDOW - 3 :]
    assert batches(5, seed=4) != plain[:5] == batches(5)
    parts = [batches(9, first_batch=2, shard=(index, 2)) for index in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == plain[2:11]


def test_the_images_of_a_batch_are_known():
    for number in (0, 5, WINDOW + 1):
        names = batch_images(Sized(), number, 4, seed=3, aspect_ratio_grouping=True)
        assert [[int(name) for name in names]] == batches(1, first_batch=number)


def test_a_part_of_a_dataset_knows_sizes_too():
    assert is_tall(Subset(Sized(), [3, 4, 6])).tolist() == [True, False, True]


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match=r"'sized' does not know them of 1 of 3 images, the first is number 1\."):
        training_dataset(Sized([(4, 6), None, (4, 6)]), **OPTIONS)
    for options in ({"repeat": False}, {"shuffle": False}):
        with pytest.raises(ValueError, match="`aspect_ratio_grouping` needs `repeat`, `shuffle`"):
            training_dataset(Sized(), **OPTIONS, **options)


def test_square_images_count_as_wide():
    assert not is_tall(Sized([(5, 5)])).any()
