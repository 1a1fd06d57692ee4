"""Files of this package: whole, finite, and of the model that they are read into."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.checkpoints.model_files import load_weights, read_model
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.weights_file import save_weights


def tiny_model(kind=MaskFormer, num_heads=2, num_classes=3, **backbone):
    backbone = ResNet(18, num_blocks=(1, 1, 1, 1), stem_channels=8, channels=(8, 8, 16, 16), **backbone)
    decoder = QueryDecoder(3, 8, num_heads, 8, decoder_layers=1)
    model = kind(backbone, FPNPixelDecoder(32, 8), decoder, num_classes)
    model.build()
    return model


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def file(model, tmp_path):
    model.save(tmp_path / "a.keras")
    return tmp_path / "a.keras"


def test_round_trip(model, file):
    again, other = read_model(file), tiny_model()
    load_weights(other, file)
    for first, second, third in zip(model.weights, again.weights, other.weights, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


def test_weights_of_the_same_shapes_and_another_model_are_refused(file):
    message = r"a\.keras: these weights do not fit .*transformer_decoder\.num_heads 2 \(configured: 4\)\. Give"
    with pytest.raises(ValueError, match=message):
        load_weights(tiny_model(num_heads=4), file)
    with pytest.raises(ValueError, match=r"class_name MaskFormer \(configured: PerPixelBaselinePlus\)"):
        load_weights(tiny_model(PerPixelBaselinePlus), file)
    with pytest.raises(ValueError, match=r"a\.keras: these weights do not fit the configured model: "):
        load_weights(tiny_model(num_classes=4), file)


def test_what_training_alone_concerns_may_differ(model, file):
    other = tiny_model(frozen_stages=2)
    load_weights(other, file)
    np.testing.assert_array_equal(model.weights[0], other.weights[0])


def test_a_file_cut_off(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    for read in (read_model, lambda path: load_weights(tiny_model(), path)):
        with pytest.raises(ValueError, match=r"a\.keras: expected a complete zip archive"):
            read(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.keras: .*an empty file"):
        read_model(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.keras: no such model file"):
        read_model(file)


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"a\.keras: expected a record 'config\.json'"):
        read_model(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{")
    with pytest.raises(ValueError, match=r"b\.keras: its config\.json cannot be read as JSON"):
        read_model(tmp_path / "b.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "c.keras")
    with pytest.raises(ValueError, match=r"c\.keras: holds a Sequential, not a segmentation model"):
        read_model(tmp_path / "c.keras")


def test_a_configuration_that_makes_no_model(file, tmp_path):
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "b.keras", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                described = json.loads(content)
                described["config"]["pixel_decoder"]["config"]["conv_dim"] = -4
                content = json.dumps(described)
            other.writestr(name, content)
    with pytest.raises(ValueError, match=r"b\.keras: not a model that this package can read"):
        read_model(tmp_path / "b.keras")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(model, tmp_path, bad):
    kernel = model.backbone.stem.convolutions[0].kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 1, bad, kernel))
    model.save(tmp_path / "a.keras")
    save_weights(model, tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"a\.keras: backbone/stem/conv1/kernel holds NaN or infinity"):
        read_model(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=r"a\.weights\.h5: backbone/stem/conv1/kernel holds NaN or infinity"):
        load_weights(tiny_model(), tmp_path / "a.weights.h5")


def test_weights_of_another_model_name_the_file(model, tmp_path):
    save_weights(model, tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"a\.weights\.h5: these weights do not fit the configured model"):
        load_weights(tiny_model(num_classes=4), tmp_path / "a.weights.h5")
    shutil.copy(tmp_path / "a.weights.h5", tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"a\.h5: weights must be a \.weights\.h5 or \.keras file"):
        load_weights(model, tmp_path / "a.h5")


@pytest.mark.parametrize("part", ["backbone", "pixel_decoder", "transformer_decoder"])
def test_a_frozen_part_stays_frozen(model, tmp_path, part):
    getattr(model, part).trainable = False
    expected = [weight.path for weight in model.trainable_variables]
    assert len(expected) < len(model.weights)
    model.save(tmp_path / "a.keras")
    again = read_model(tmp_path / "a.keras")
    assert not getattr(again, part).trainable
    assert [weight.path for weight in again.trainable_variables] == expected
