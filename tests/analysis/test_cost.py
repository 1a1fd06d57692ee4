"""Multiply-adds against hand numbers and against the analytic figures for the published models."""

from __future__ import annotations

import keras
import pytest

from kmaskformer.analysis.cost import count_cost
from kmaskformer.build import build_model
from kmaskformer.config import BackboneConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig


def cost_at_512(name, **options):
    with keras.StatelessScope(initialize_variables=False):
        model = build_model(ModelConfig(backbone=BackboneConfig(name=name), **options))
        return count_cost(model, (512, 512))


@pytest.fixture(scope="module")
def resnet50():
    return cost_at_512("resnet50")


@pytest.mark.parametrize(
    ("path", "giga"),
    # Analytic, at 512x512: convolutions and matrix products, masks of all six decoder layers, no norms.
    [("backbone", 21.4), ("pixel_decoder", 25.4), ("decoder and heads", 4.0), ("semantic_inference", 3.9)],
)
def test_resnet50_at_512_pixels(resnet50, path, giga):
    counts = dict(resnet50.multiply_adds)
    counts["decoder and heads"] = sum(counts[k] for k in ("transformer_decoder", "class_head", "mask_head", "masks"))
    assert round(counts[path] / 1e9, 1) == giga


def test_the_sum_is_that_of_the_parts(resnet50):
    for counts in (resnet50.multiply_adds, resnet50.activations):
        assert counts[""] == sum(value for path, value in counts.items() if path and "/" not in path)
    assert round((resnet50.multiply_adds[""] - resnet50.multiply_adds["semantic_inference"]) / 1e9, 1) == 50.8


def test_single_layers_by_hand(resnet50):
    assert resnet50.multiply_adds["backbone/stem/conv1"] == 256 * 256 * 64 * 7 * 7 * 3
    assert resnet50.activations["backbone/stem/conv1"] == 256 * 256 * 64
    assert resnet50.multiply_adds["pixel_decoder/mask_features"] == 128 * 128 * 256 * 3 * 3 * 256
    assert resnet50.multiply_adds["masks"] == 6 * 100 * 256 * 128 * 128
    assert resnet50.multiply_adds["class_head"] == 6 * 100 * 256 * 151
    assert resnet50.multiply_adds["semantic_inference"] == 100 * 150 * 512 * 512
    pixels, queries, dim, layers = 16 * 16, 100, 256, 6
    attention = 2 * queries * dim * pixels + 2 * queries * dim * dim + 2 * pixels * dim * dim
    assert resnet50.multiply_adds["transformer_decoder/decoder/layer_0/cross_attention"] == attention
    feedforward = layers * 2 * queries * dim * 2048
    name = "transformer_decoder/decoder/layer_{}/linear{}"
    assert sum(resnet50.multiply_adds[name.format(i, j)] for i in range(6) for j in (1, 2)) == feedforward


@pytest.mark.slow
@pytest.mark.parametrize(("name", "giga"), [("resnet101", 70.2), ("resnet101c", 77.2)])
def test_other_resnets_at_512_pixels(name, giga):
    counts = cost_at_512(name).multiply_adds
    assert round((counts[""] - counts["semantic_inference"]) / 1e9, 1) == giga


def test_the_papers_figure_for_resnet50(resnet50):
    """53 G: one layer's masks, the semantic inference, and norms as the paper's tool counts them."""
    counts, activations = resnet50.multiply_adds, resnet50.activations
    earlier_layers = sum(counts[part] for part in ("masks", "mask_head", "class_head")) * 5 / 6
    # The tool takes 2 operations for each number out of a frozen batch norm and 5 for a group norm.
    group_norms = activations["pixel_decoder"] - activations["pixel_decoder/mask_features"]
    norms = 2 * activations["backbone"] + 5 * group_norms
    assert round((counts[""] - earlier_layers) / 1e9, 1) == 52.5
    assert round((counts[""] - earlier_layers + norms) / 1e9) == 53


@pytest.mark.slow
def test_the_papers_figure_for_swin_tiny():
    assert round(cost_at_512("swin_tiny", deep_supervision=False).multiply_adds[""] / 1e9) == 55


@pytest.fixture(scope="module")
def small():
    config = ModelConfig(
        name="per_pixel_plus",
        num_classes=5,
        backbone=BackboneConfig(name="resnet18"),
        pixel_decoder=PixelDecoderConfig(conv_dim=32, mask_dim=32),
        transformer_decoder=TransformerDecoderConfig(
            num_queries=5, hidden_dim=32, feedforward_dim=64, decoder_layers=2
        ),
    )
    return build_model(config)


def test_cost_grows_with_the_batch_and_the_image(small):
    one = count_cost(small, (64, 96)).multiply_adds
    assert "semantic_inference" not in one  # a per-pixel model's logits are its scores
    assert count_cost(small, (64, 96), batch=3).multiply_adds[""] == 3 * one[""]
    assert count_cost(small, (128, 192)).multiply_adds["backbone"] == 4 * one["backbone"]
    assert one["masks"] == 2 * 5 * 32 * 16 * 24
