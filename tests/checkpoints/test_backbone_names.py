"""Backbones from published classifiers. The names below are written out from those projects' own module trees."""

import importlib.util
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest

from kmaskformer.backbones.coordinates import CoordinateBackbone
from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.checkpoints.backbone_names import load_backbone_weights
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(prefix, channels):
    return {f"{prefix}.{leaf}": () if leaf == "num_batches_tracked" else (channels,) for leaf in BATCH_NORM}


def dense(prefix, inputs, outputs, bias=True):
    return {f"{prefix}.weight": (outputs, inputs), **({f"{prefix}.bias": (outputs,)} if bias else {})}


def layer_norm(prefix, channels):
    return {f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)}


def torchvision_resnet(bottleneck=True, deep=False):
    """`torchvision.models.ResNet` with blocks 1, 2, 1, 1 and tiny widths."""
    stem = 8
    shapes = {"conv1.weight": (stem, 3, 7, 7), **norm("bn1", stem)}
    if deep:
        shapes = {"conv1.weight": (4, 3, 3, 3), **norm("bn1", 4), "conv2.weight": (4, 4, 3, 3), **norm("bn2", 4)}
        shapes |= {"conv3.weight": (stem, 4, 3, 3), **norm("bn3", stem)}
    channels = stem
    for stage, (width, count) in enumerate(zip((4, 8, 12, 16), (1, 2, 1, 1), strict=True), start=1):
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            name = f"layer{stage}.{block}"
            if bottleneck:
                kernels = [(width, channels, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            else:
                kernels = [(width, channels, 3, 3), (width, width, 3, 3)]
            for index, kernel in enumerate(kernels, start=1):
                shapes |= {f"{name}.conv{index}.weight": kernel, **norm(f"{name}.bn{index}", kernel[0])}
            if channels != outputs or (stage > 1 and block == 0):
                shapes |= {f"{name}.downsample.0.weight": (outputs, channels, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", outputs)
            channels = outputs
    return {**shapes, **dense("fc", channels, 10)}


def detectron2_resnet(deep=False):
    """What detectron2's own converter makes of the above; even the classifier's names get a `stem.`."""
    shapes = {}
    for name, shape in torchvision_resnet(deep=deep).items():
        name = name if name.startswith("layer") else f"stem.{name}"
        for index in (1, 2, 3, 4):
            name = name.replace(f"layer{index}", f"res{index + 1}").replace(f"bn{index}", f"conv{index}.norm")
        shapes[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = shape
    return shapes


def microsoft_swin(window=3):
    """`SwinTransformer` of the paper's authors, depths 1, 2, 1, 1, 8 channels."""
    shapes = {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,)}
    shapes |= layer_norm("patch_embed.norm", 8)
    for stage, (count, heads) in enumerate(zip((1, 2, 1, 1), (1, 2, 2, 4), strict=True)):
        dim = 8 * 2**stage
        for block in range(count):
            name = f"layers.{stage}.blocks.{block}"
            shapes |= layer_norm(f"{name}.norm1", dim)
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            shapes[f"{name}.attn.relative_position_index"] = (window**2, window**2)
            shapes |= dense(f"{name}.attn.qkv", dim, 3 * dim) | dense(f"{name}.attn.proj", dim, dim)
            shapes |= layer_norm(f"{name}.norm2", dim)
            shapes |= dense(f"{name}.mlp.fc1", dim, 4 * dim) | dense(f"{name}.mlp.fc2", 4 * dim, dim)
            if block % 2:
                shapes[f"{name}.attn_mask"] = (4, window**2, window**2)
        if stage < 3:
            shapes |= dense(f"layers.{stage}.downsample.reduction", 4 * dim, 2 * dim, bias=False)
            shapes |= layer_norm(f"layers.{stage}.downsample.norm", 4 * dim)
    return {**shapes, **layer_norm("norm", 64), **dense("head", 64, 10)}


def timm_swin():
    """timm from 0.9 on: the step between stages begins the later one, the classifier is `head.fc`."""
    shapes = {}
    for name, shape in microsoft_swin().items():
        if ".downsample." in name:
            name = f"layers.{int(name[7]) + 1}{name[8:]}"
        shapes[name.replace("head.", "head.fc.")] = shape
    return {name: shape for name, shape in shapes.items() if not name.endswith(("_index", "attn_mask"))}


def make_resnet(depth=50, **options):
    factor = 4 if depth >= 50 else 1
    channels = tuple(factor * width for width in (4, 8, 12, 16))
    return ResNet(depth, num_blocks=(1, 2, 1, 1), stem_channels=8, channels=channels, **options)


def make_swin():
    return SwinTransformer(8, (1, 2, 1, 1), (1, 2, 2, 4), window_size=3)


FILES = {
    "torchvision": (torchvision_resnet(), make_resnet),
    "torchvision basic": (torchvision_resnet(bottleneck=False), lambda: make_resnet(18)),
    "torchvision deep stem": (torchvision_resnet(deep=True), lambda: make_resnet(stem="deep")),
    "detectron2": (detectron2_resnet(), make_resnet),
    "detectron2 deep stem": (detectron2_resnet(deep=True), lambda: make_resnet(stem="deep")),
    "trainable norms": (torchvision_resnet(), lambda: make_resnet(norm="batch")),
    "microsoft": (microsoft_swin(), make_swin),
    "timm": (timm_swin(), make_swin),
}


def built(backbone):
    backbone.build((None, None, None, 3))
    return backbone


def random_arrays(shapes, rng):
    return {name: np.asarray(rng.standard_normal(shape), "float32") for name, shape in shapes.items()}


def value(layer, path):
    return keras.ops.convert_to_numpy(named_weights(layer)[f"backbone/{path}"])


@pytest.mark.parametrize("kind", FILES)
def test_every_array_is_used_or_ignored(kind, rng):
    shapes, make = FILES[kind]
    backbone = built(make())
    report = load_backbone_weights(backbone, random_arrays(shapes, rng))
    assert len(report.loaded) + len(report.ignored) == len(shapes)
    buffers = ("num_batches_tracked", "relative_position_index", "attn_mask")
    classifier = ("fc.", "stem.fc.", "norm.", "head.")
    assert all(name.endswith(buffers) or name.startswith(classifier) for name in report.ignored)
    norms = tuple(f"backbone/norm{i}/{leaf}" for i in range(4) for leaf in ("gamma", "beta"))
    assert report.fresh == (norms if isinstance(backbone, SwinTransformer) else ())


def test_values_of_a_resnet(rng):
    arrays = random_arrays(torchvision_resnet(), rng)
    backbone = built(make_resnet())
    load_backbone_weights(backbone, arrays)
    expected = {
        "stem/conv1/kernel": arrays["conv1.weight"].transpose(2, 3, 1, 0),
        "stem/conv1/norm/mean": arrays["bn1.running_mean"],
        "res3/1/conv3/kernel": arrays["layer2.1.conv3.weight"].transpose(2, 3, 1, 0),
        "res3/1/conv2/norm/variance": arrays["layer2.1.bn2.running_var"],
        "res5/0/shortcut/kernel": arrays["layer4.0.downsample.0.weight"].transpose(2, 3, 1, 0),
        "res5/0/shortcut/norm/offset": arrays["layer4.0.downsample.1.bias"],
    }
    for path, array in expected.items():
        np.testing.assert_array_equal(value(backbone, path), array)


def test_both_orders_of_swin_give_the_same(rng):
    """timm's file of the same weights, with the steps between stages under the next stage's name."""
    arrays = random_arrays(microsoft_swin(), rng)
    first, second = built(make_swin()), built(make_swin())
    load_backbone_weights(first, arrays)
    renamed = {
        (f"layers.{int(name[7]) + 1}{name[8:]}" if ".downsample." in name else name): array
        for name, array in arrays.items()
    }
    load_backbone_weights(second, renamed)
    assert load_backbone_weights(second, renamed).title == "a Swin of timm from 0.9 on"
    for path in named_weights(first):
        path = path.removeprefix("backbone/")
        np.testing.assert_array_equal(value(first, path), value(second, path))
    np.testing.assert_array_equal(
        value(first, "layers_0/downsample/reduction/kernel"), arrays["layers.0.downsample.reduction.weight"].T
    )


def test_deep_stem_counted_as_parts_of_one_convolution(rng):
    shapes = detectron2_resnet(deep=True)
    for index in (1, 2, 3):
        shapes = {name.replace(f"stem.conv{index}.", f"stem.conv1_{index}."): shape for name, shape in shapes.items()}
    backbone = built(make_resnet(stem="deep"))
    arrays = random_arrays(shapes, rng)
    load_backbone_weights(backbone, arrays)
    np.testing.assert_array_equal(value(backbone, "stem/conv3/norm/mean"), arrays["stem.conv1_3.norm.running_mean"])


def test_backbone_of_a_model_and_a_file(rng, tmp_path):
    model = MaskFormer(make_resnet(), FPNPixelDecoder(32, 16), QueryDecoder(2, 16, 2, 24, decoder_layers=1), 3)
    model.build()
    head = keras.ops.convert_to_numpy(model.class_head.kernel).copy()
    arrays = random_arrays(detectron2_resnet(), rng)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision", "matching_heuristics": True}))
    report = load_backbone_weights(model, path)
    assert report.title == "a detectron2 ResNet"
    kernel = keras.ops.convert_to_numpy(model.backbone.stem.convolutions[0].kernel)
    np.testing.assert_array_equal(kernel, arrays["stem.conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.class_head.kernel), head)


def test_backbone_of_a_model_that_appends_coordinates(rng):
    backbone = CoordinateBackbone(make_resnet(), 4)
    model = MaskFormer(backbone, FPNPixelDecoder(32, 16), QueryDecoder(2, 16, 2, 24, decoder_layers=1), 3)
    model.build()
    arrays = random_arrays(torchvision_resnet(), rng)
    for given in (model, backbone):
        load_backbone_weights(given, arrays)
        kernel = keras.ops.convert_to_numpy(backbone.backbone.stem.convolutions[0].kernel)
        np.testing.assert_array_equal(kernel, arrays["conv1.weight"].transpose(2, 3, 1, 0))
        arrays = random_arrays(torchvision_resnet(), rng)


@pytest.mark.parametrize("kind", ["detectron2", "microsoft"])
def test_backbone_of_a_reference_checkpoint(kind, rng):
    """The whole model's file: heads are ignored, and Swin's output norms are there."""
    shapes, make = FILES[kind]
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items() if "fc." not in name or "mlp." in name}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(("backbone.norm.", "backbone.head"))}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("attn_mask")}
    if kind == "microsoft":
        for index in range(4):
            shapes |= layer_norm(f"backbone.norm{index}", 8 * 2**index)
    shapes |= {"sem_seg_head.predictor.class_embed.bias": (4,), "criterion.empty_weight": (4,)}
    report = load_backbone_weights(built(make()), random_arrays(shapes, rng))
    assert (report.title, report.fresh) == ("a reference MaskFormer", ())


@pytest.mark.parametrize(("kind", "depth"), [("swin", None), ("resnet_basic", 18), ("resnet_bottleneck", 50)])
@pytest.mark.parametrize("alone", [False, True])
def test_backbone_of_hugging_face(kind, depth, alone):
    """Of a whole MaskFormer, and under the names of an image classifier of the same library."""
    path = Path(__file__).parent / "test_huggingface.py"
    spec = importlib.util.spec_from_file_location("huggingface_cases", path)
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    _, arrays = cases.fixture(kind)
    if alone:
        prefix, new = "model.pixel_level_module.encoder.", "resnet."
        if kind == "swin":
            prefix, new = f"{prefix}model.", "swin."
        arrays = {name.replace(prefix, new): array for name, array in arrays.items() if name.startswith(prefix)}
        arrays |= {"classifier.1.weight": np.zeros((5, 3)), "classifier.1.bias": np.zeros(5)}
    if kind == "swin":
        backbone = SwinTransformer(8, (1, 2, 1, 1), (1, 2, 2, 4), window_size=5)
    else:
        backbone = ResNet(depth, num_blocks=(1, 2, 1, 1), stem_channels=8, channels=(8, 12, 16, 24))
    report = load_backbone_weights(built(backbone), arrays)
    assert len(report.fresh) == (8 if alone and kind == "swin" else 0)
    assert report.title.startswith("a Hugging Face")


def test_unknown_names():
    message = r"those of no known backbone. Received 1 names, first: features.0.weight. Recognised are: a torchvision"
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(built(make_resnet()), {"features.0.weight": np.zeros(3)})


def test_weights_of_the_other_backbone(rng):
    with pytest.raises(ValueError, match=r"are those of a Swin of Microsoft, or of timm before 0.9, but the backbone"):
        load_backbone_weights(built(make_resnet()), random_arrays(microsoft_swin(), rng))


def test_weights_of_another_size(rng):
    backbone = built(ResNet(50, num_blocks=(1, 2, 1, 2), stem_channels=8, channels=(16, 32, 48, 64)))
    message = r"1[0-9] weights have no array: backbone/res5/1/conv1/kernel \(layer4.1.conv1.weight\)"
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(backbone, random_arrays(torchvision_resnet(), rng))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"a ResNet or a SwinTransformer. Received: Dense"):
        load_backbone_weights(keras.layers.Dense(2), {})
    with pytest.raises(TypeError, match=r"`arrays_or_path` must map parameter names to arrays, .* Received: int"):
        load_backbone_weights(built(make_resnet()), 3)
