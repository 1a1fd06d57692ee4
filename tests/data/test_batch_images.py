"""The images that a batch was made of."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from kmaskformer.data.batch_images import batch_images
from kmaskformer.data.pipeline import training_dataset
from kmaskformer.data.synthetic import Shapes


def test_they_are_those_of_the_pipeline():
    reader = Shapes(7, image_size=(32, 32), seed=2)
    by_content = {reader[index]["image"].tobytes(): reader[index]["image_id"] for index in range(7)}
    batches = training_dataset(reader, batch_size=3, image_size=(32, 32), seed=5).take(5)
    for number, (inputs, _) in enumerate(batches):
        expected = [by_content[image.tobytes()] for image in inputs["images"].numpy()]
        assert batch_images(reader, number, 3, seed=5) == expected


def test_substitutes_are_named_where_broken_samples_are_skipped():
    class Broken(Shapes):
        def __getitem__(self, index):
            if index in (2, 3):
                raise ValueError("damaged")
            return super().__getitem__(index)

        def files(self, index):
            return (Path(self._name(index)),)

        def _name(self, index):
            return f"{self.seed}_{index:06d}"

    reader = Broken(7, image_size=(32, 32), seed=2)
    by_content = {reader[index]["image"].tobytes(): reader[index]["image_id"] for index in (0, 1, 4, 5, 6)}
    dataset = training_dataset(reader, batch_size=7, image_size=(32, 32), seed=5, on_error="skip")
    (inputs, _) = next(iter(dataset))
    names = batch_images(dataset.skipped, 0, 7, seed=5)
    assert names == [by_content[image.tobytes()] for image in inputs["images"].numpy()]
    assert names.count(reader[4]["image_id"]) == 3


def test_files_are_named_where_the_reader_knows_them():
    class Files(Shapes):
        def files(self, index):
            return (Path(f"/data/{index}.jpg"), Path(f"/data/{index}.png"))

    names = batch_images(Files(4, seed=0), 0, 4)
    assert sorted(names) == ["/data/0.jpg", "/data/1.jpg", "/data/2.jpg", "/data/3.jpg"]
