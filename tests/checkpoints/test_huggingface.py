"""Hugging Face folders, with real names and shapes and real outputs of transformers, but without PyTorch."""

import importlib.util
import json
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.checkpoints.huggingface import load_huggingface_folder, load_huggingface_model, read_preprocessor
from kmaskformer.checkpoints.huggingface_config import model_from_huggingface_config
from kmaskformer.checkpoints.huggingface_export import export_to_huggingface
from kmaskformer.checkpoints.huggingface_names import HUGGINGFACE_MAP
from kmaskformer.checkpoints.loading import load_weights_by_name
from kmaskformer.checkpoints.reader import read_checkpoint
from kmaskformer.checkpoints.safetensors_writer import LazyArray, write_safetensors
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.structures import DatasetInfo

FIXTURES = Path(__file__).parent / "huggingface"
KINDS = ("swin", "resnet_basic", "resnet_bottleneck")
IN_MEMORY = (
    ("out_proj", "o_proj"),
    (".fc1.", ".mlp.fc1."),
    (".fc2.", ".mlp.fc2."),
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.self.relative", "attention.relative_position_bias.relative"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def load_generator():
    path = Path(__file__).parent / "make_huggingface_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_huggingface_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def fixture(kind):
    content = json.loads((FIXTURES / f"{kind}.json").read_text())
    arrays = {name: generator.formula_weight(name, tuple(shape)) for name, (shape, _) in content["arrays"].items()}
    return content["config"], arrays


def write_folder(folder, config, arrays, preprocessor=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    lazy = {name: LazyArray(a.shape, str(a.dtype), lambda a=a: a) for name, a in arrays.items()}
    write_safetensors(folder / "model.safetensors", lazy)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def assert_close(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(kind, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("hf") / kind, *fixture(kind))
    return load_huggingface_model(folder)


def test_same_outputs_as_transformers(loaded, kind):
    outputs = loaded[0](generator.images())
    expected = np.load(FIXTURES / f"{kind}.npz")
    for key in ("class_logits", "mask_logits"):
        assert_close(outputs[key], expected[key])


def test_every_array_is_used_once_or_ignored(loaded, kind):
    model, report = loaded
    _, arrays = fixture(kind)
    used = [key for row in report.loaded for key in row.source.split(" + ")]
    assert len(used) == len(set(used))
    assert sorted([*used, *report.ignored]) == sorted(arrays)
    assert report.fresh == ()
    endings = ("relative_position_index", "num_batches_tracked", "empty_weight", "encoder.model.layernorm.weight")
    assert all(name.endswith((*endings, "encoder.model.layernorm.bias")) for name in report.ignored)
    assert [row.path for row in report.loaded] == [weight.path.partition("/")[2] for weight in model.weights]


def test_names_in_memory(loaded, kind):
    """The names that the arrays have inside newer versions of transformers."""
    _, report = loaded
    config, arrays = fixture(kind)
    renamed = {}
    for name, array in arrays.items():
        for old, new in IN_MEMORY:
            name = name.replace(old, new) if new not in name else name
        renamed[name] = array
    assert len(set(renamed) - set(arrays)) >= 8
    other = load_weights_by_name(model_from_huggingface_config(config), renamed, HUGGINGFACE_MAP)
    assert other.loaded == report.loaded


def test_labels_and_architecture(loaded):
    model, _ = loaded
    assert model.dataset_info.class_names == ("sky", "road", "car")
    assert (model.num_classes, model.deep_supervision) == (3, False)
    assert model.transformer_decoder.num_queries == 5
    assert model.transformer_decoder.layer_options == {
        "num_heads": 2,
        "feedforward_dim": 24,
        "dropout": 0.1,
        "pre_norm": False,
    }


def test_another_number_of_classes(tmp_path):
    folder = write_folder(tmp_path / "hf", *fixture("resnet_basic"))
    with pytest.warns(UserWarning, match="hf: left fresh, to be trained: class_head/kernel, class_head/bias"):
        model = load_huggingface_folder(folder, num_classes=7)
    assert model.num_classes == 7 and model.dataset_info is None
    assert np.any(keras.ops.convert_to_numpy(model.class_head.kernel))
    _, report = load_huggingface_model(folder, num_classes=7)
    assert "class_predictor.weight" in report.ignored and "criterion.empty_weight" in report.ignored


def test_same_number_of_classes_leaves_nothing_fresh(tmp_path):
    folder = write_folder(tmp_path / "hf", *fixture("resnet_basic"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_huggingface_folder(folder, num_classes=3)
    assert model.dataset_info.class_names == ("sky", "road", "car")


def test_round_trip(loaded, kind, tmp_path):
    """Export writes the very names, shapes and types that transformers writes, and reads back the same."""
    model, _ = loaded
    folder = export_to_huggingface(model, tmp_path / "out", shortest_edge=640, longest_edge=2560)
    content = json.loads((FIXTURES / f"{kind}.json").read_text())
    arrays = read_checkpoint(folder)
    assert {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()} == content["arrays"]
    again = load_huggingface_folder(folder)
    for ours, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(other))
    assert again.dataset_info == model.dataset_info
    assert read_preprocessor(folder)[:2] == (640, 2560)
    np.testing.assert_allclose(again.preprocessing.mean, model.preprocessing.mean, rtol=1e-12)


@pytest.mark.parametrize(("divisibility", "read"), [(0, 1), (64, 64)])
def test_round_trip_of_the_padding(tmp_path, divisibility, read):
    config, _ = fixture("resnet_basic")
    model = model_from_huggingface_config(config, size_divisibility=divisibility)
    again = load_huggingface_folder(export_to_huggingface(model, tmp_path / "x"))
    assert again.preprocessing.size_divisibility == read  # 1 pads as little as 0
    assert again.padded_size(45, 61) == model.padded_size(45, 61)


@pytest.mark.parametrize(
    ("values", "expected"), [({"size_divisor": 16}, 16), ({"size_divisibility": 8}, 8), ({}, 32), (None, 32)]
)
def test_padding_of_a_preprocessor(tmp_path, values, expected):
    """Older versions of transformers write `size_divisibility`, newer ones `size_divisor`."""
    if values is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert read_preprocessor(tmp_path).size_divisibility == expected


def test_exported_configuration_says_what_transformers_says(loaded, kind, tmp_path):
    model, _ = loaded
    written = json.loads((export_to_huggingface(model, tmp_path) / "config.json").read_text())
    expected = fixture(kind)[0]
    # transformers leaves dropout within attention out, and describes DETR's encoder, of which there is none.
    different = {"attention_dropout", "activation_dropout", "encoder_ffn_dim", "encoder_attention_heads"}
    for section in ("backbone_config", "decoder_config"):
        for key, value in written.pop(section).items():
            if key not in different:
                assert value == expected[section][key], key
    assert {key: expected[key] for key in written} == written


def test_things_and_colors_survive_the_export(tmp_path):
    config, _ = fixture("resnet_basic")
    info = DatasetInfo("streets", ("sky", "road", "car"), thing_ids=(2,), colors=((0, 0, 9), (1, 1, 1), (7, 0, 0)))
    model = model_from_huggingface_config(config, dataset_info=info)
    assert load_huggingface_folder(export_to_huggingface(model, tmp_path / "x")).dataset_info == info


def test_export_over_an_older_export(tmp_path, monkeypatch):
    """Labels of an older model do not stay; a failure changes nothing; `~` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config, _ = fixture("resnet_basic")
    info = DatasetInfo("streets", ("sky", "road", "car"), thing_ids=(2,))
    model = model_from_huggingface_config(config, dataset_info=info)
    folder = export_to_huggingface(model, "~/x")
    assert folder == tmp_path / "x"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "dataset_info.json" in before
    model.dataset_info = None
    monkeypatch.setattr("kmaskformer.checkpoints.huggingface_export._preprocessor", lambda *_: {"x": {1, 2}})
    with pytest.raises(TypeError):
        export_to_huggingface(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    export_to_huggingface(model, folder)
    assert {path.name for path in folder.iterdir()} == set(before) - {"dataset_info.json"}


@pytest.mark.parametrize("edges", [("x", 9), (0, 9), (8.0, 9), (10, 9), (True, 9), (8, None)])
def test_export_of_impossible_sizes(tmp_path, edges):
    config, _ = fixture("resnet_basic")
    with pytest.raises(ValueError, match=r"`shortest_edge` and `longest_edge` must be positive integers"):
        export_to_huggingface(model_from_huggingface_config(config), tmp_path / "x", *edges)
    assert not list(tmp_path.iterdir())


def test_a_foreign_dataset_info_is_named(tmp_path):
    """The library `datasets` writes a file of the same name."""
    folder = write_folder(tmp_path / "hf", *fixture("resnet_basic"))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    with pytest.raises(ValueError, match=r"dataset_info\.json: .*'citation'.* delete it"):
        load_huggingface_folder(folder)


def test_repeated_label_names():
    config, _ = fixture("resnet_basic")
    config["id2label"] = {"2": "tree", "0": "tree", "1": "car"}
    names = model_from_huggingface_config(config).dataset_info.class_names
    assert names == ("tree", "car", "tree (2)")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (None, {"model_type": "mask2former"}, "`model_type` must be maskformer. Received: 'mask2former'"),
        (None, {"fpn_feature_size": 40}, "`fpn_feature_size` must be a multiple of 32. Received: 40"),
        (None, {"id2label": {"1": "a", "2": "b"}}, r"the ids of `id2label` must be 0..1. Received: \[1, 2\]..."),
        (
            "backbone_config",
            {"model_type": "convnext"},
            "must be swin, maskformer-swin or resnet. Received: 'convnext'",
        ),
        (
            "backbone_config",
            {"use_absolute_embeddings": True},
            "`backbone_config.use_absolute_embeddings` must be False",
        ),
        ("decoder_config", {"activation_function": "gelu"}, "`decoder_config.activation_function` must be 'relu'"),
    ],
)
def test_unsupported_configurations(section, values, message):
    config, _ = fixture("swin")
    (config[section] if section else config).update(values)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        model_from_huggingface_config(config)


def test_unsupported_resnets():
    config, _ = fixture("resnet_basic")
    config["backbone_config"]["layer_type"] = "xception"
    with pytest.raises(ValueError, match=r"`backbone_config.layer_type` must be basic or bottleneck. Received: 'xce"):
        model_from_huggingface_config(config)
    config["backbone_config"] |= {"layer_type": "basic", "downsample_in_first_stage": True}
    with pytest.raises(ValueError, match=r"`backbone_config.downsample_in_first_stage` must be False"):
        model_from_huggingface_config(config)


def test_published_sizes_by_default(monkeypatch):
    """What older files leave out has transformers' defaults: Swin-B, and 100 queries of 256 channels."""
    made = {}
    monkeypatch.setattr("kmaskformer.checkpoints.huggingface_config.MaskFormer.build", lambda model: None)
    model = model_from_huggingface_config({"model_type": "maskformer", "id2label": {"0": "a"}})
    made = model.backbone.get_config()
    assert (made["embed_dim"], made["depths"], made["window_size"]) == (128, [2, 2, 18, 2], 12)
    assert (model.transformer_decoder.num_queries, model.transformer_decoder.hidden_dim) == (100, 256)
    config = {"model_type": "maskformer", "num_labels": 4, "backbone_config": {"model_type": "resnet"}}
    model = model_from_huggingface_config(config)
    assert (model.backbone.depth, model.backbone.channels) == (50, (256, 512, 1024, 2048))
    assert model.dataset_info.class_names == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, (800, 1333, 123.675, 58.395)),
        ({}, (800, 1333, 123.675, 58.395)),
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, (512, 2048, 123.675, 58.395)),
        ({"size": 640, "max_size": 2560}, (640, 2560, 123.675, 58.395)),
        ({"size": {"height": 512, "width": 384}}, (384, 512, 123.675, 58.395)),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (800, 1333, 127.5, 63.75)),
        ({"image_mean": [9] * 3, "image_std": [3] * 3, "do_rescale": False}, (800, 1333, 9, 3)),
        ({"do_normalize": False}, (800, 1333, 0, 255)),
    ],
)
def test_preprocessor(tmp_path, values, expected):
    if values is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    preparation = read_preprocessor(tmp_path)
    assert preparation[:2] == expected[:2]
    np.testing.assert_allclose([preparation.pixel_mean[0], preparation.pixel_std[0]], expected[2:], rtol=1e-9)


def test_preprocessor_reaches_the_model(tmp_path):
    values = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    folder = write_folder(tmp_path / "hf", *fixture("resnet_basic"), values)
    assert load_huggingface_folder(folder).preprocessing.mean == (127.5,) * 3


def test_broken_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file. A Hugging Face folder has config.json"):
        load_huggingface_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: cannot be read as JSON"):
        load_huggingface_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: must hold a JSON object. Found: list"):
        load_huggingface_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}')
    with pytest.raises(ValueError, match=r"image_mean and image_std must have 3 entries. Received: \[255"):
        read_preprocessor(tmp_path)


def test_arrays_of_another_architecture(tmp_path):
    folder = write_folder(tmp_path / "mixed", fixture("swin")[0], fixture("resnet_basic")[1])
    with pytest.raises(ValueError, match=r"mixed: The arrays do not fit the model. \d+ weights have no array"):
        load_huggingface_folder(folder)


def published(backbone=None, pixel_decoder=None, **decoder):
    """A model without weights, of the kind that the export looks at."""
    decoder = QueryDecoder(4, 16, 2, 24, decoder_layers=1, **decoder)
    return MaskFormer(backbone or ResNet(18), pixel_decoder or FPNPixelDecoder(32, 16), decoder, num_classes=3)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (
            lambda: published(pixel_decoder=TransformerFPNPixelDecoder(32, 16)),
            "pixel decoder TransformerFPNPixelDecoder",
        ),
        (lambda: published(pixel_decoder=FPNPixelDecoder(32, 16, norm="none")), "a pixel decoder without group norm"),
        (lambda: published(pre_norm=True), "pre-norm transformer layers"),
        (lambda: published(encoder_layers=1), "encoder layers before the transformer decoder"),
        (lambda: published(in_feature="res4"), "a transformer decoder over res4"),
        (lambda: published(ResNet(50, stem="deep")), "a deep ResNet stem"),
        (lambda: published(ResNet(50, multi_grid=(1, 2, 4))), r"dilated convolutions in res5 \(multi_grid\)"),
        (lambda: published(SwinTransformer(absolute_position_embedding=True)), "absolute position embeddings in Swin"),
        (lambda: published(SwinTransformer(patch_norm=False)), "a Swin patch embedding without norm"),
        (lambda: published(SwinTransformer(qk_scale=1.0)), r"another scale of Swin's attention \(qk_scale\)"),
        (lambda: PerPixelBaseline(ResNet(18), FPNPixelDecoder(32, 16), 3), "the head of PerPixelBaseline"),
    ],
)
def test_no_such_architecture_in_transformers(model, part, tmp_path):
    message = f"transformers has no MaskFormer with .*{part}.*: the model cannot be exported"
    with pytest.raises(ValueError, match=message):
        export_to_huggingface(model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_parts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"with pre-norm transformer layers; nor with a deep ResNet stem; nor with"):
        export_to_huggingface(published(ResNet(101, stem="deep", multi_grid=(1, 2, 4)), pre_norm=True), tmp_path)


def test_writer_refuses(tmp_path):
    with pytest.raises(ValueError, match="x: cannot store complex64; expected one of float32, float16"):
        write_safetensors(tmp_path / "f", {"x": LazyArray((1,), "complex64", lambda: None)})
    with pytest.raises(ValueError, match=r"x: announced with shape \(2,\), made with \(3,\)"):
        write_safetensors(tmp_path / "f", {"x": LazyArray((2,), "float32", lambda: np.zeros(3))})
