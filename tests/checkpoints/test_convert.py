"""From any checkpoint to a model, and the command line around it."""

import importlib.util
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.checkpoints.convert import load_checkpoint
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.checkpoints.reference_config import model_from_reference_arrays
from kmaskformer.checkpoints.reference_names import load_reference_weights, reference_parameter
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder


def small_resnet(depth=18, **options):
    factor = 4 if depth >= 50 else 1
    channels = tuple(factor * width for width in (8, 12, 16, 24))
    options = {"num_blocks": (1, 2, 1, 1), "stem_channels": 8, "channels": channels, **options}
    return ResNet(depth, **options)


def decoder(queries=5, **options):
    return QueryDecoder(queries, 32, 1, 24, decoder_layers=2, **options)


def small_swin(**options):
    return SwinTransformer(8, (1, 2, 1, 1), (1, 2, 2, 4), window_size=3, **options)


def encoder(**options):
    return TransformerFPNPixelDecoder(32, 16, encoder_layers=2, num_heads=1, feedforward_dim=24, **options)


MODELS = {
    "resnet": lambda: MaskFormer(small_resnet(), FPNPixelDecoder(32, 16), decoder(), 3),
    "bottleneck": lambda: MaskFormer(small_resnet(50), FPNPixelDecoder(32, 16, norm="none"), decoder(), 3),
    "deep stem": lambda: MaskFormer(
        small_resnet(101, stem="deep", multi_grid=(1, 2, 4), num_blocks=(1, 1, 1, 3)),
        FPNPixelDecoder(32, 16),
        decoder(pre_norm=True, encoder_layers=1),
        3,
    ),
    "encoder": lambda: MaskFormer(small_resnet(), encoder(), decoder(in_feature="transformer_encoder"), 3),
    "swin": lambda: MaskFormer(
        small_swin(mlp_ratio=2.0, qkv_bias=False, absolute_position_embedding=True, pretrain_image_size=32),
        FPNPixelDecoder(32, 16),
        decoder(),
        3,
    ),
    "per pixel": lambda: PerPixelBaseline(small_resnet(), FPNPixelDecoder(32, 16), 4),
    "per pixel plus": lambda: PerPixelBaselinePlus(small_resnet(), FPNPixelDecoder(32, 16), decoder(4), 4),
}


def built(name):
    model = MODELS[name]()
    model.build()
    return model


def reference_state(model):
    """The model's weights as the reference would store them."""
    state, thirds = {}, {}
    for path, variable in named_weights(model).items():
        value = keras.ops.convert_to_numpy(variable)
        key, third = reference_parameter(path)
        if path.endswith("/kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if third is None:
            state[key] = value
        else:
            thirds.setdefault(key, [None] * 3)[third] = value
    return {**state, **{key: np.concatenate(parts) for key, parts in thirds.items()}}


def write_pickle(path, state):
    path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    return path


def assert_same_weights(first, second):
    first, second = named_weights(first), named_weights(second)
    assert first.keys() == second.keys()
    for path, weight in first.items():
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), keras.ops.convert_to_numpy(second[path]), err_msg=path
        )


def interesting(config):
    """Arguments of a part that shapes can tell; stochastic depth and the like are not among them."""
    untold = ("name", "dtype", "trainable", "drop", "attention_drop", "depth", "enforce", "num_heads", "pretrain")
    return {key: value for key, value in config.items() if not key.startswith(untold)}


@pytest.mark.parametrize("name", MODELS)
def test_architecture_from_names_and_shapes(name, tmp_path):
    model = built(name)
    path = write_pickle(tmp_path / "model_final.pkl", reference_state(model))
    again, report = load_checkpoint(path)
    assert type(again) is type(model) and again.num_classes == model.num_classes
    assert (report.fresh, report.ignored) == ((), ())
    assert_same_weights(model, again)
    for part in model.PARTS:
        told = interesting(getattr(again, part).get_config())
        assert told == interesting(getattr(model, part).get_config())


@pytest.mark.parametrize("name", ["resnet", "per pixel", "per pixel plus"])
def test_another_number_of_classes(name, tmp_path):
    path = write_pickle(tmp_path / "model_final.pkl", reference_state(built(name)))
    model, report = load_checkpoint(path, num_classes=7)
    assert model.num_classes == 7
    of_classes = {
        "resnet": ("class_head/kernel", "class_head/bias"),
        "per pixel": ("classifier/kernel", "classifier/bias"),
        "per pixel plus": ("transformer_decoder/query_embedding",),
    }
    assert report.fresh == of_classes[name]


@pytest.mark.parametrize(
    "name",
    [
        "maskformer_r50_ade20k150",
        "maskformer_r50_6enc_coco_panoptic",
        "maskformer_r101c_cityscapes19",
        "maskformer_swin_t_ade20k150",
        "per_pixel_r50_ade20k150",
        "per_pixel_plus_r50_ade20k150",
    ],
)
def test_architecture_of_the_published_models(name, shared_folder, without_values):
    """By the names and shapes of the original's own state."""
    meta = json.loads((shared_folder / "golden" / name / "meta.json").read_text())
    shapes = {key: tuple(shape) for key, shape, _ in meta["state_dict"]}
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    model = without_values(model_from_reference_arrays, arrays)
    expected = {key for key in shapes if not key.endswith(("_index", "_tracked", "empty_weight"))}
    assert {reference_parameter(path).key for path in named_weights(model)} == expected
    if name.startswith("maskformer"):
        assert model.transformer_decoder.layer_options["num_heads"] == 8


def test_huggingface_names_in_a_model_of_a_configuration(tmp_path):
    spec = importlib.util.spec_from_file_location("huggingface_cases", Path(__file__).parent / "test_huggingface.py")
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    config, arrays = cases.fixture("resnet_basic")
    folder = cases.write_folder(tmp_path / "hf", config, arrays)
    model, report = load_checkpoint(folder)
    other, _ = load_checkpoint(folder / "model.safetensors", lambda: cases.model_from_huggingface_config(config))
    assert_same_weights(model, other)
    assert report.title == "Hugging Face MaskFormer"
    with pytest.raises(ValueError, match=r"model.safetensors: Hugging Face weights need their config.json beside them"):
        load_checkpoint(folder / "model.safetensors")


def test_files_of_our_own(tmp_path):
    model = built("resnet")
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    again, report = load_checkpoint(tmp_path / "a.keras")
    assert_same_weights(model, again)
    assert len(report.loaded) == len(model.weights)
    again, _ = load_checkpoint(tmp_path / "a.weights.h5", lambda: built("resnet"))
    assert_same_weights(model, again)
    with pytest.raises(ValueError, match=r"does not tell its architecture. Convert it with the configuration"):
        load_checkpoint(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"a.keras: another number of classes is possible with published checkpoints"):
        load_checkpoint(tmp_path / "a.keras", num_classes=2)


def test_what_a_file_does_not_tell_is_said(source, caplog):
    with caplog.at_level(logging.WARNING):
        load_checkpoint(source[1])
        assert "does not tell the number of attention heads; taken to be 1, of 32 channels each" in caplog.text
        caplog.clear()
        load_checkpoint(source[1], lambda: built("resnet"))
    assert not caplog.records


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, "2", True])
def test_what_is_no_number_of_classes(source, num_classes):
    with pytest.raises(ValueError, match=r"`num_classes` must be a positive integer, or None. Received"):
        load_checkpoint(source[1], num_classes=num_classes)


def test_arrays_of_something_else(tmp_path):
    path = write_pickle(tmp_path / "R-50.pkl", {"stem.conv1.weight": np.zeros((2, 2))})
    message = r"R-50.pkl: Expected parameter names of a MaskFormer: .* Received 1 names, first: stem.conv1.weight. For"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r"Expected the names of a reference checkpoint, such as .* Received 1 names"):
        model_from_reference_arrays({"a": np.zeros(2)})


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).resolve().parents[2] / "scripts" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    model = built("resnet")
    return model, write_pickle(tmp_path_factory.mktemp("zoo") / "model_final.pkl", reference_state(model))


def test_convert_to_weights_file(script, source, tmp_path, capsys):
    model, path = source
    assert script.main([str(path), str(tmp_path / "new" / "a.weights.h5")]) == 0
    again = built("resnet")
    again.load_weights(tmp_path / "new" / "a.weights.h5")
    assert_same_weights(model, again)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weight", "shape", "from"]
    assert "backbone/stem/conv1/norm/scale" in "\n".join(lines)
    assert lines[-2:] == [
        f"reference MaskFormer: {len(model.weights)} weights set, 0 left fresh, 0 arrays ignored",
        f"written: {tmp_path / 'new' / 'a.weights.h5'}",
    ]


def test_a_conversion_that_fails_leaves_the_destination(script, source, tmp_path, monkeypatch):
    destination = tmp_path / "model.weights.h5"
    destination.write_bytes(b"earlier")

    def save_half(model, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("kmaskformer.training.saving.save_weights", save_half)
    with pytest.raises(SystemExit, match="No space left"):
        script.main([str(source[1]), str(destination)])
    assert destination.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


def test_convert_to_a_model_file_and_to_transformers(script, source, tmp_path):
    model, path = source
    assert script.main([str(path), str(tmp_path / "a.keras")]) == 0
    assert_same_weights(model, keras.saving.load_model(tmp_path / "a.keras"))
    assert script.main([str(tmp_path / "a.keras"), str(tmp_path / "hf"), "--huggingface"]) == 0
    assert script.main([str(tmp_path / "hf"), str(tmp_path / "b.keras")]) == 0
    assert_same_weights(model, keras.saving.load_model(tmp_path / "b.keras"))


def test_convert_to_a_preset_and_on(script, source, tmp_path):
    model, path = source
    assert script.main([str(path), str(tmp_path / "preset")]) == 0
    assert script.main([str(tmp_path / "preset"), str(tmp_path / "a.keras")]) == 0
    assert_same_weights(model, keras.saving.load_model(tmp_path / "a.keras"))


def test_convert_with_a_configuration(script, source, tmp_path, monkeypatch):
    """The configuration's architecture, but neither its number of classes nor its own weights file."""

    def build_model(config):
        assert (config.backbone.name, config.weights) == ("resnet18", "")
        model = MaskFormer(small_resnet(), FPNPixelDecoder(32, 16), decoder(), config.num_classes)
        model.build()
        return model

    monkeypatch.setattr("kmaskformer.command_line.convert.build_model", build_model)
    config = Path(__file__).resolve().parents[2] / "configs/shapes/panoptic/maskformer_resnet18.yaml"
    options = ["--config", str(config), "--num-classes", "9"]
    assert script.main([str(source[1]), str(tmp_path / "a.keras"), *options]) == 0
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert again.num_classes == 9
    assert_same_weights(source[0].backbone, again.backbone)


def test_convert_refuses(script, source, tmp_path, capsys):
    path = str(source[1])
    with pytest.raises(SystemExit):
        script.main([path, path])
    assert "DESTINATION must differ from SOURCE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([path, str(tmp_path / "a.keras"), "--huggingface"])
    assert "--huggingface writes a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^error: .*absent\.pkl"):
        script.main([str(tmp_path / "absent.pkl"), str(tmp_path / "a.keras")])


@pytest.mark.slow
def test_convert_swin_large(tmp_path):
    """Memory within 2.5 times the file, beyond what importing TensorFlow takes; time is printed."""
    script = Path(__file__).with_name("measure_conversion.py")
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout.splitlines()[-1])
    print(figures)
    assert figures["peak_bytes"] <= 2.5 * figures["file_bytes"]


def test_load_reference_weights_says_what_it_read(source):
    report = load_reference_weights(built("resnet"), source[1])
    assert report.summary().startswith("reference MaskFormer: ")


def test_what_only_looks_like_a_checkpoint_of_the_reference(tmp_path):
    (tmp_path / "config.json").write_text('{"module": "kmaskformer", "registered_name": "kmaskformer>MaskFormer"}')
    with pytest.raises(ValueError, match=r"is a preset of this package, which kmaskformer\.from_preset loads"):
        load_checkpoint(tmp_path)
    mask2former = {
        "sem_seg_head.pixel_decoder.mask_features.weight": np.zeros((8, 8, 1, 1), np.float32),
        "sem_seg_head.predictor.class_embed.weight": np.zeros((4, 8), np.float32),
        "backbone.stem.conv1.weight": np.zeros((8, 3, 7, 7), np.float32),
    }
    with pytest.raises(ValueError, match="Its successors, such as Mask2Former, are other models"):
        model_from_reference_arrays(mask2former)
