"""The files that `benchmark.py data` measures with: in the layout of each recipe, with labels of its classes."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark_data(load_script):
    return load_script("benchmarks/data")


@pytest.mark.parametrize(
    ("name", "num_classes", "suffix"), [("ade20k", 150, ".jpg"), ("cityscapes", 19, ".png"), ("coco", 133, ".jpg")]
)
def test_files_of_a_recipe(benchmark_data, tmp_path, rng, name, num_classes, suffix):
    pictures = [rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2)]
    files, reader = benchmark_data.write_dataset(name, tmp_path, pictures)
    assert [path.suffix for path in files] == [suffix] * 2 and reader.info.num_classes == num_classes
    for sample, picture in zip((reader[0], reader[1]), pictures, strict=True):
        assert np.abs(sample["image"].astype(int) - picture).mean() < 12
        assert len(sample["labels"]) > 3 and (sample["segment_map"] >= 0).all()
    assert (benchmark_data.CONFIGS / benchmark_data.RECIPES[name][0]).is_file()
    benchmark_data.decode(files[0])
    counted = benchmark_data.Counted(reader)
    if name == "coco":  # its recipe groups images by their shape
        assert counted.image_size(0) == pictures[0].shape[:2]
    assert counted[0]["image"].shape[:2] == pictures[0].shape[:2] and counted.reads == 1


def test_own_times(benchmark_data):
    assert benchmark_data.thread_seconds(sum, range(200_000)) > benchmark_data.thread_seconds(sum, range(10)) >= 0
    assert benchmark_data.resident_mib() > 50
