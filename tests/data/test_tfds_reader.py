"""Datasets of TensorFlow Datasets, built here from a few pixels."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from kmaskformer.build_data import build_dataset, build_reader
from kmaskformer.config import ConfigError, config_from_dict
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.synthetic import Shapes
from kmaskformer.data.tfds_reader import TfdsReader
from kmaskformer.structures import DatasetInfo

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`", exc_type=ImportError)

PANOPTIC_IDS = np.array([[0, 300, 300], [70000, 9, 9]])


def colors(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def picture(index, shape=(2, 3)):
    return np.full((*shape, 3), index, np.uint8)


def image_feature(channels=3, **options):
    return tfds.features.Image(shape=(None, None, channels), encoding_format="png", **options)


def version_of(name):
    """The version in which the library would look for the dataset."""
    if name not in ("oxford_iiit_pet", "scene_parse150", "coco", "cityscapes"):
        return tfds.core.Version("1.0.0")
    builder = tfds.builder_cls(name)
    return builder.VERSION or builder.BUILDER_CONFIGS[0].version


def make_builder(name, features, examples, config_name=None, **options):
    """A dataset of the examples of each split, written to `data_dir`."""
    configs = [tfds.core.BuilderConfig(name=config_name, version=version_of(name))] if config_name else []

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = version_of(name)
        BUILDER_CONFIGS = configs

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in examples.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    builder = Builder(**options)
    config = tfds.download.DownloadConfig(num_shards=2) if len(next(iter(examples.values()))) > 3 else None
    builder.download_and_prepare(download_config=config)


@pytest.fixture()
def pets(tmp_path):
    """Seven pictures to train, two to test; the map of picture i holds 1 + i % 3."""
    features = {
        "image": image_feature(),
        "segmentation_mask": image_feature(1),
        "file_name": tfds.features.Text(),
    }

    def row(index):
        mask = np.full((2, 3, 1), 1 + index % 3, np.uint8)
        return {"image": picture(index), "segmentation_mask": mask, "file_name": f"pet {index}"}

    examples = {"train": [row(i) for i in range(7)], "test": [row(i) for i in range(2)]}
    make_builder("oxford_iiit_pet", features, examples, data_dir=tmp_path)
    return tmp_path


def numbers(reader):
    """Which picture each sample holds, by the file's name, which must agree with its pixels."""
    found = []
    for sample in reader:
        number = int(sample["image_id"].split()[-1])
        assert (sample["image"] == number).all() and sample["labels"].tolist() == [number % 3]
        assert (sample["segment_map"] == 0).all() and sample["segment_map"].dtype == np.int32
        found.append(number)
    return found


def test_semantic(pets):
    reader = TfdsReader("oxford_iiit_pet", data_dir=pets)
    assert reader.info.class_names == ("pet", "background", "border") and len(reader) == 7
    (folder,) = pets.glob("oxford_iiit_pet/*")
    rows = tfds.builder_from_directory(folder).as_dataset(split="train", shuffle_files=False)
    order = [int(row["file_name"].numpy().split()[-1]) for row in rows]
    assert numbers(reader) == order and sorted(order) == list(range(7))
    assert numbers([reader[-1], reader[3], reader[0]]) == [order[-1], order[3], order[0]]
    assert numbers(TfdsReader("oxford_iiit_pet", "train[2:5]", data_dir=pets)) == order[2:5]
    assert sorted(numbers(TfdsReader("oxford_iiit_pet", "train[:2]+test", data_dir=pets))) == sorted([*order[:2], 0, 1])
    assert numbers(TfdsReader("oxford_iiit_pet", limit=2, data_dir=pets)) == order[:2]
    with pytest.raises(IndexError):
        TfdsReader("oxford_iiit_pet", "train[2:5]", data_dir=pets)[3]


def test_from_a_configuration(pets):
    config = config_from_dict({"data": {"source": "tfds:oxford_iiit_pet", "root": str(pets), "batch_size": 2}}).data
    assert len(build_reader(config, "train")) == 7
    assert sorted(numbers(build_reader(config, "val"))) == [0, 1]  # there is no `validation`, so that `test` is taken
    inputs, targets = next(iter(build_dataset(config, "train").as_numpy_iterator()))
    assert inputs["images"].shape == (2, 2, 3, 3) and targets["labels"].shape == (2, 1)
    values = {
        "source": "tfds:oxford_iiit_pet",
        "root": str(pets),
        "class_names": ["pet"],
        "val": {"images": "train[:3]"},
    }
    reader = build_reader(config_from_dict({"data": values}).data, "val")
    assert len(reader) == 3 and reader.info.class_names == ("pet",)
    with pytest.raises(ValueError, match=r"tfds:oxford_iiit_pet, train\[:3\], example \d: .*Received: \[[123]\]"):
        list(reader)
    with pytest.raises(ConfigError, match=r"data.source: must be one of shapes, .*tfds:NAME. Received: 'tfd:pets'"):
        config_from_dict({"data": {"source": "tfd:pets"}})


def test_array_record_files(tmp_path):
    features = {"image": image_feature(), "label_map": image_feature(1)}
    rows = [{"image": picture(i), "label_map": np.full((2, 3, 1), i, np.uint8)} for i in range(3)]
    make_builder("fields", features, {"train": rows}, data_dir=tmp_path, file_format="array_record")
    info = DatasetInfo("fields", ("soil", "crop", "weed"))
    labels = [int(sample["labels"][0]) for sample in TfdsReader("fields", info=info, data_dir=tmp_path)]
    assert sorted(labels) == [0, 1, 2]


def test_panoptic(tmp_path):
    objects = {"id": np.int64, "label": tfds.features.ClassLabel(num_classes=133), "is_crowd": np.bool_}
    features = {
        "image": image_feature(),
        "image/id": np.int64,
        "panoptic_image": image_feature(),
        "panoptic_objects": tfds.features.Sequence(objects),
    }
    table = {"id": [70000, 300, 9], "label": [132, 2, 0], "is_crowd": [False, False, True]}
    row = {"image": picture(5), "image/id": 42, "panoptic_image": colors(PANOPTIC_IDS)}
    segments = [{key: values[i] for key, values in table.items()} for i in range(3)]
    rows = {"train": [row | {"panoptic_objects": segments}], "validation": [row | {"panoptic_objects": []}]}
    make_builder("coco", features, rows, "2017_panoptic", data_dir=tmp_path)
    (sample,) = reader = TfdsReader("coco/2017_panoptic", data_dir=tmp_path)
    assert reader.info == label_space("coco_panoptic_133")
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 1, 1], [0, 2, 2]])
    assert sample["labels"].tolist() == [132, 2, 0] and sample["is_crowd"].tolist() == [False, False, True]
    assert sample["image_id"] == "42"
    with pytest.raises(ValueError, match=r"tfds:coco/2017_panoptic, validation, example 0: every id .*\[9, 300, 7"):
        TfdsReader("coco/2017_panoptic", "validation", data_dir=tmp_path)[0]


def test_scene_parse_holds_the_things_of_the_instance_challenge(tmp_path):
    """Red 1 and 4 are bed and person, the first and the fourth of the things; green numbers the instances."""
    ids = np.array([[0, 1 + 256, 1 + 512], [4 + 256, 4 + 256, 0]])
    features = {"image": image_feature(), "annotation": image_feature()}
    rows = {"test": [{"image": picture(5), "annotation": colors(ids)}]}
    make_builder("scene_parse150", features, rows, data_dir=tmp_path)
    (sample,) = reader = TfdsReader("scene_parse150", ("validation", "test"), data_dir=tmp_path)
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 0, 2], [1, 1, -1]])
    assert [reader.info.class_names[label] for label in sample["labels"]] == ["bed", "person", "bed"]


def test_cityscapes_ids_that_are_not_evaluated_are_void(tmp_path):
    ids = np.array([[7, 0, 9], [33, 255, 7]], np.uint8)[..., None]
    features = {"image_left": image_feature(), "segmentation_label": image_feature(1), "image_id": tfds.features.Text()}
    rows = {"train": [{"image_left": picture(5), "segmentation_label": ids, "image_id": "ulm"}]}
    make_builder("cityscapes", features, rows, "semantic_segmentation", data_dir=tmp_path)
    (sample,) = TfdsReader("cityscapes", data_dir=tmp_path)
    np.testing.assert_array_equal(sample["segment_map"], [[0, -1, -1], [1, -1, 0]])
    assert sample["labels"].tolist() == [0, 18] and sample["image_id"] == "ulm"


def test_our_own_builder(tmp_path):
    from kmaskformer.data.synthetic_tfds import ShapesBuilder

    builder = ShapesBuilder(data_dir=tmp_path, image_size=(32, 48), num_train=3, num_validation=1, seed=5)
    builder.download_and_prepare()
    reader = TfdsReader(builder.info.full_name.rpartition("/")[0], data_dir=tmp_path)
    scenes = {scene["image_id"]: scene for scene in Shapes(3, (32, 48), 5)}
    assert len(reader) == 3
    for sample in reader:
        scene = scenes[sample["image_id"]]
        for key in ("image", "segment_map", "labels", "is_crowd"):
            np.testing.assert_array_equal(sample[key], scene[key])


def test_what_cannot_be_read(pets, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no split 'val'. It has train, test"):
        TfdsReader("oxford_iiit_pet", "val", data_dir=pets)
    with pytest.raises(ValueError, match=r"tfds:no_such_dataset: TensorFlow Datasets has no such dataset"):
        TfdsReader("no_such_dataset", data_dir=pets)
    boxes = {"image": image_feature(), "boxes": tfds.features.BBoxFeature()}
    row = {"image": picture(1), "boxes": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
    make_builder("boxes", boxes, {"train": [row]}, data_dir=pets)
    with pytest.raises(ValueError, match=r"tfds:boxes: must have an image .*Received: the features boxes, image"):
        TfdsReader("boxes", data_dir=pets)
    masks = {"image": image_feature(), "mask": image_feature(1)}
    row = {"image": picture(1), "mask": np.zeros((3, 3, 1), np.uint8)}
    make_builder("masks", masks, {"train": [row]}, data_dir=pets)
    with pytest.raises(ValueError, match=r"tfds:masks: the classes are not known. Give them in data.class_names"):
        TfdsReader("masks", data_dir=pets)
    reader = TfdsReader("masks", info=DatasetInfo("masks", ("soil",)), data_dir=pets)
    with pytest.raises(ValueError, match=r"tfds:masks, train, example 0: .*same size.*\(2, 3\) and \(3, 3\)"):
        reader[0]
    (file,) = pets.glob("masks/1.0.0/*tfrecord*")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"masks-train.*: the file ends within a record"):
        TfdsReader("masks", info=DatasetInfo("masks", ("soil",)), data_dir=pets)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"tfds:masks needs .*install\.sh data"):
        TfdsReader("masks", data_dir=pets)


def test_a_dataset_that_is_not_prepared(tmp_path):
    command = rf"tfds.builder\('oxford_iiit_pet', data_dir='{tmp_path}'\).download_and_prepare\(\)"
    with pytest.raises(FileNotFoundError, match=rf"is not prepared. Set data.root to .* or download it: .*{command}"):
        TfdsReader("oxford_iiit_pet", data_dir=str(tmp_path))


def test_features_of_the_librarys_own_builders():
    """What the reader looks for is what the library's builders have."""
    for name, keys in {
        "oxford_iiit_pet": ("image", "segmentation_mask", "file_name"),
        "scene_parse150": ("image", "annotation"),
        "coco/2017_panoptic": ("image", "panoptic_image", "panoptic_objects", "image/id"),
        "cityscapes": ("image_left", "segmentation_label", "image_id"),
    }.items():
        features = tfds.builder(name).info.features
        assert set(keys) <= set(features), name
