"""From the `data` section to readers: what is refused, and why."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer.build_data import build_dataset, build_reader, training_images
from kmaskformer.config import ConfigError, config_from_dict, load_config


def semantic_config(folder, **data):
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8).repeat(4, 0).repeat(4, 1)).save(folder / "a.png")
    split = {"images": "*.jpg", "labels": "{stem}.png"}
    values = {"source": "semantic_folder", "root": str(folder), "train": split, "val": split, **data}
    return config_from_dict({"data": values}).data


def test_an_ignore_value_that_is_a_class_is_refused(tmp_path):
    config = semantic_config(tmp_path, class_names=["soil", "crop", "weed"], ignore_value=0)
    with pytest.raises(ValueError, match=r"ignore_value 0 is also the id of the class 'soil'.*data\.classes"):
        build_reader(config, "train")


def test_a_class_file_with_ids_leaves_the_ignore_value_free(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps([{"id": 1, "name": "crop"}, {"id": 2, "name": "weed"}]))
    reader = build_reader(semantic_config(tmp_path, classes="classes.json", ignore_value=0), "train")
    sample = reader[0]
    assert sample["labels"].tolist() == [0, 1]
    assert (sample["segment_map"] == -1).sum() == 16


def test_classes_are_needed(tmp_path):
    with pytest.raises(ValueError, match=r"data\.classes .* or data\.class_names"):
        build_reader(semantic_config(tmp_path), "train")


@pytest.mark.parametrize("field", ["class_names", "thing_names"])
def test_coco_takes_its_classes_from_its_file(field):
    config = config_from_dict({"data": {"source": "coco_panoptic", field: ["person"]}}).data
    with pytest.raises(ValueError, match="categories of its JSON"):
        build_reader(config, "val")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split='test'"):
        build_reader(semantic_config(tmp_path, class_names=["a", "b", "c"]), "test")


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("data", "train", {"limit": -1}, "limit: must not be negative"),
        ("data", "augmentation", {"crop": [0, 64]}, "crop: must be positive"),
        ("data", "augmentation", {"scale_range": [2.0, 0.5]}, "increasing positive numbers"),
        ("evaluation", "object_mask_threshold", 80.0, r"must lie in 0\.\.1"),
        ("evaluation", "best_metric", "panoptic/PQ", r"must belong to one of evaluation\.metrics"),
        ("optimizer", "learning_rate", float("nan"), "must be a finite number"),
        ("optimizer", "learning_rate", -1.0e-4, "must not be negative"),
        ("model", "transformer_decoder", {"hidden_dim": 30}, "must divide hidden_dim"),
    ],
)
def test_values_out_of_range_are_refused(section, field, value, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict({section: {field: value}})


def test_the_published_recipe_reads_ade20k_as_it_was_downloaded(repository, shared_folder, tmp_path):
    """Three official validation images in the layout of the download; pixel counts as their PNGs have them."""
    sample_folder = shared_folder / "conformance" / "ade20k_sample3"
    for ours, theirs in (("images", "images"), ("annotations", "annotations")):
        (tmp_path / ours).mkdir()
        (tmp_path / ours / "validation").symlink_to(sample_folder / theirs)
    config = load_config(repository / "configs/ade20k/semantic/maskformer_resnet50.yaml", [f"data.root={tmp_path}"])
    reader = build_reader(config.data, "val")
    assert len(reader) == 3 and reader.info.class_names[:3] == ("wall", "building", "sky")
    for index, sample in enumerate(reader):
        stored = np.asarray(Image.open(sample_folder / "annotations" / f"ADE_val_0000000{index + 1}.png"))
        classes = np.append(sample["labels"], -1)[sample["segment_map"]]
        np.testing.assert_array_equal(classes, stored.astype(int) - 1)


def test_folders_caches_and_skipping_from_a_configuration(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/{number}.png")
        if number:
            Image.fromarray(np.full((8, 8), number - 1, np.uint8)).save(tmp_path / f"masks/{number}.png")
    split = {"images": "images", "labels": "masks"}
    values = {"source": "semantic_folder", "root": str(tmp_path), "train": split, "val": split}
    values |= {"class_names": ["soil", "crop"], "batch_size": 3, "cache_folder": str(tmp_path / "cache")}
    with pytest.raises(FileNotFoundError, match="1 of 3 images have no label map"):
        build_reader(config_from_dict({"data": values}).data, "train")
    config = config_from_dict({"data": {**values, "on_error": "skip"}}).data
    dataset = build_dataset(config, "train")
    _, targets = next(iter(dataset))
    assert targets["segment_map"].shape == (3, 8, 8)
    assert dataset.skipped.report().startswith("1 of 3 samples")
    assert len(list((tmp_path / "cache/train").glob("*.sample"))) == 2  # nothing of the broken one
    assert len(list(build_dataset(config, "val"))) == 2


def test_python_examples_from_a_configuration(tmp_path, monkeypatch):
    (tmp_path / "fields_of_a_configuration.py").write_text(
        "import numpy as np\n"
        "def train():\n"
        "    return ((np.full((4, 6, 3), n, np.uint8), np.eye(4, 6, dtype=np.uint8)) for n in range(5))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = {
        "source": "examples",
        "class_names": ["soil", "crop"],
        "train": {"examples": "fields_of_a_configuration:train", "limit": 3},
    }
    reader = build_reader(config_from_dict({"data": data}).data, "train")
    assert len(reader) == 3 and reader[2]["image"].max() == 2 and reader[0]["labels"].tolist() == [0, 1]


def test_reduced_decoding_keeps_what_the_augmentation_needs(tmp_path):
    """A 64x96 JPEG, of which up to 20 rows are asked for, is decoded at a half; for validation it is whole."""
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "a.png")
    split = {"images": "*.jpg", "labels": "{stem}.png"}
    values = {"source": "semantic_folder", "root": str(tmp_path), "train": split, "val": split, "class_names": ["a"]}
    values |= {"reduced_decoding": True, "augmentation": {"shortest_edges": [10, 20]}}
    config = config_from_dict({"data": values}).data
    assert build_reader(config, "train")[0]["segment_map"].shape == (32, 48)
    assert build_reader(config, "val")[0]["segment_map"].shape == (64, 96)


def test_batches_of_a_service_have_no_known_images(tmp_path):
    """They come in the order in which they are ready: names by number would be those of others."""
    config = semantic_config(tmp_path, class_names=["soil", "crop", "weed"], batch_size=2)
    reader = build_reader(config, "train")
    assert training_images(config, reader, 0) == [str(tmp_path / "a.jpg")] * 2
    assert training_images(dataclasses.replace(config, service="grpc://host:5000"), reader, 0) == []
