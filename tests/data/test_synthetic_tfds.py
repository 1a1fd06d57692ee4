"""The TensorFlow Datasets builder holds the scenes of the reader."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from kmaskformer.data.synthetic import Shapes


def test_builder_holds_the_readers_scenes(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`", exc_type=ImportError)
    from kmaskformer.data.synthetic_tfds import ShapesBuilder

    builder = ShapesBuilder(data_dir=tmp_path, image_size=(48, 64), num_train=3, num_validation=2, seed=5)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 3
    for split, seed, count in (("train", 5, 3), ("validation", 6, 2)):
        scenes = {sample["image_id"]: sample for sample in Shapes(count, (48, 64), seed)}
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())
        assert len(examples) == count
        for example in examples:
            scene = scenes[example["image_id"].decode()]
            np.testing.assert_array_equal(example["image"], scene["image"])
            np.testing.assert_array_equal(example["segment_map"][..., 0].astype(int) - 1, scene["segment_map"])
            np.testing.assert_array_equal(example["labels"], scene["labels"])


def test_message_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "kmaskformer.data.synthetic_tfds", raising=False)
    with pytest.raises(ImportError, match=r"install\.sh data"):
        import kmaskformer.data.synthetic_tfds  # noqa: F401


@pytest.mark.parametrize("is_given", [False, True])
def test_builder_takes_a_config_as_tfds_build_does(tmp_path, is_given):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`", exc_type=ImportError)
    from kmaskformer.data.synthetic_tfds import ShapesBuilder, ShapesConfig

    options = {"image_size": (48, 64), "num_train": 3, "num_validation": 2, "seed": 5}
    arguments = {"config": ShapesConfig(**options)} if is_given else {"config": None, **options}
    builder = ShapesBuilder(data_dir=tmp_path, **arguments)
    assert builder.data_dir.endswith("kmaskformer_shapes/48x64_3_2_seed5/1.0.0")
    assert builder.builder_config == ShapesConfig(**options)
