"""Against PyTorch and transformers: outputs, gradients and the way back. `pytest -m parity`, with both installed."""

import gc
import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from kmaskformer.checkpoints.huggingface import load_huggingface_folder, load_huggingface_model
from kmaskformer.checkpoints.huggingface_export import export_to_huggingface
from kmaskformer.checkpoints.huggingface_names import huggingface_source
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.losses.matcher import HungarianMatcher
from kmaskformer.losses.set_criterion import SetCriterion

pytestmark = pytest.mark.parity

KINDS = ("swin", "resnet_basic", "resnet_bottleneck")
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWINS = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin_large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
RESNETS = {"resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}
SIZES = [(384, 384), (512, 640), (333, 417)]


def load_generator():
    path = Path(__file__).parent / "make_huggingface_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_huggingface_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, torch, tmp_path_factory):
    """The same tiny model on both sides."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs, _ = generator.with_formula_weights(request.param, folder)
    return theirs, load_huggingface_folder(folder)


def normalized(torch, images, height=None, width=None):
    """Images as transformers takes them, padded with zeros to a multiple of 32."""
    pixels = ((images.astype("float32") - generator.MEAN) / generator.STD).transpose(0, 3, 1, 2)
    margins = [(0, -side % 32) for side in images.shape[1:3]]
    return torch.tensor(np.pad(pixels, [(0, 0), (0, 0), *margins]), dtype=torch.float32)


def largest_difference(actual, expected):
    """Largest absolute difference over the largest magnitude."""
    actual, expected = keras.ops.convert_to_numpy(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def compare(torch, theirs, ours, images):
    with torch.no_grad():
        expected = theirs(pixel_values=normalized(torch, images))
    outputs = ours(images)
    return max(
        largest_difference(outputs["class_logits"], expected.class_queries_logits),
        largest_difference(outputs["mask_logits"], expected.masks_queries_logits),
    )


@pytest.mark.parametrize("size", [(64, 96), (224, 192), (45, 70), (101, 33)])
def test_outputs(torch, pair, rng, size):
    images = rng.integers(0, 256, (2, *size, 3), dtype="uint8")
    assert compare(torch, *pair, images) < 1e-4


def test_gradients_of_the_last_layers_loss(torch, pair, rng):
    """Every parameter, those of the norms that are frozen here included."""
    theirs, ours = pair
    images = rng.integers(0, 256, (2, 64, 96, 3), dtype="uint8")
    masks = np.zeros((2, 3, 64, 96), "uint8")
    for image in range(2):
        for index in range(3):
            masks[image, index, 16 * index : 16 * index + 30, 20 * image : 20 * image + 40] = 1
    labels = np.array([[0, 2, 1], [1, 0, 2]])
    theirs.zero_grad()
    expected = theirs(
        pixel_values=normalized(torch, images),
        mask_labels=[torch.tensor(mask, dtype=torch.float32) for mask in masks],
        class_labels=[torch.tensor(label) for label in labels],
    )
    expected.loss.backward()
    targets = {"masks": masks, "labels": labels.astype("int32"), "valid": np.ones((2, 3), bool)}
    loss, gradients = gradients_of(ours, images, targets)
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=1e-4)
    check_gradients(theirs, gradients)


def gradients_of(model, images, targets):
    import tensorflow as tf

    criterion = SetCriterion(
        weights={"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}, matcher=HungarianMatcher(1.0, 20.0, 1.0)
    )
    weights = {path: variable.value for path, variable in named_weights(model).items()}
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        loss = sum(criterion(model(images), targets).values())
    return float(loss), dict(zip(weights, tape.gradient(loss, list(weights.values())), strict=True))


def check_gradients(theirs, gradients):
    """Compares under transformers' names in memory. A gradient that vanishes in exact arithmetic is only noise."""
    parameters = dict(theirs.named_parameters())
    in_memory = {disk_name(name): value for name, value in parameters.items()}
    largest = max(float(value.grad.abs().max()) for value in in_memory.values() if value.grad is not None)
    seen = set()
    for path, gradient in gradients.items():
        keys = huggingface_source(path).keys
        if path.endswith(("/mean", "/variance", "/moving_mean", "/moving_variance")):
            continue  # buffers there
        gradient = keras.ops.convert_to_numpy(gradient)
        if path.endswith("/kernel"):
            gradient = gradient.transpose(3, 2, 0, 1) if gradient.ndim == 4 else gradient.T
        expected = np.concatenate([in_memory[key].grad.numpy() for key in keys])
        seen.update(keys)
        tolerance = 1e-4 * np.abs(expected).max() + 1e-6 * largest
        assert np.abs(gradient - expected).max() <= tolerance, path
    unseen = {name for name, value in in_memory.items() if value.grad is not None and name not in seen}
    assert unseen <= {"model.pixel_level_module.encoder.model.layernorm.weight"}


def disk_name(name):
    return name.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc") if "transformer_module" in name else name


def test_export_is_read_by_transformers(torch, pair, rng, tmp_path):
    from transformers import MaskFormerForInstanceSegmentation

    _, ours = pair
    folder = export_to_huggingface(ours, tmp_path / "out")
    again, info = MaskFormerForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    images = rng.integers(0, 256, (1, 64, 96, 3), dtype="uint8")
    assert compare(torch, again.eval(), ours, images) < 1e-4
    assert again.config.id2label == {0: "sky", 1: "road", 2: "car"}


def test_export_of_a_model_of_ours(torch, rng, tmp_path):
    """Not one that came from there: initial weights, another number of classes, its own image sizes."""
    from transformers import AutoImageProcessor, MaskFormerForInstanceSegmentation

    from kmaskformer.backbones.swin import SwinTransformer
    from kmaskformer.models.maskformer import MaskFormer
    from kmaskformer.models.pixel_decoder import FPNPixelDecoder
    from kmaskformer.models.transformer_decoder import QueryDecoder

    backbone = SwinTransformer(8, (1, 2, 1, 1), (1, 2, 2, 4), window_size=4, qkv_bias=False, mlp_ratio=2.0)
    ours = MaskFormer(backbone, FPNPixelDecoder(32, 24), QueryDecoder(7, 64, 2, 24, decoder_layers=2), 5)
    ours.build()
    folder = export_to_huggingface(ours, tmp_path / "out", shortest_edge=128, longest_edge=256)
    again, info = MaskFormerForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    images = rng.integers(0, 256, (1, 96, 128, 3), dtype="uint8")
    assert compare(torch, again.eval(), ours, images) < 1e-4
    processor = AutoImageProcessor.from_pretrained(folder)
    assert dict(processor.size) == {"shortest_edge": 128, "longest_edge": 256}
    pixels = processor(images=images[0], return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2] == 128 and abs(float(pixels.mean())) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SWINS, *RESNETS])
def test_published_sizes(torch, rng, tmp_path, name, capsys):
    """Random weights, as `save_pretrained` writes them, at three sizes.

    The batch norms get statistics, and the last of each residual block a gain of 0.2, as trained ones have. With
    transformers' own initial weights, features grow to 5e5 in ResNet-101's last stage, attention becomes a choice of
    one pixel, and PyTorch itself is 2e-4 away from its result in float64 (this package: 8e-4).
    """
    import transformers

    torch.manual_seed(0)
    if name in SWINS:
        backbone = transformers.MaskFormerSwinConfig(**SWINS[name], image_size=384, out_features=STAGES)
    else:
        backbone = transformers.ResNetConfig(depths=RESNETS[name], out_features=STAGES)
    labels = {index: f"class {index}" for index in range(150)}
    config = transformers.MaskFormerConfig(backbone_config=backbone, id2label=labels)
    theirs = transformers.MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        for path, module in theirs.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                gain = 0.2 if ".layer.2." in path else 1.0
                module.weight.normal_(gain, 0.1 * gain)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    ours, report = load_huggingface_model(tmp_path)
    assert report.fresh == ()
    figures = []
    for size in SIZES:
        images = rng.integers(0, 256, (1, *size, 3), dtype="uint8")
        figures.append(compare(torch, theirs, ours, images))
        gc.collect()
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(f"{h}x{w} {f:.1e}" for (h, w), f in zip(SIZES, figures, strict=True)))
    assert max(figures) < 1e-4
