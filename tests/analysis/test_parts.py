"""Parameters by part are those of the published architectures."""

from __future__ import annotations

import pytest

from kmaskformer.analysis.parts import at_depth, count_parameters, structure, sums_by_path
from kmaskformer.build import build_model
from kmaskformer.config import BackboneConfig, ModelConfig

PUBLISHED = {  # backbone, pixel decoder, transformer decoder with its heads, whole
    "resnet50": (23_454_912, 7_540_480, 10_259_351, 41_254_743),
    "swin_tiny": (27_520_698, 4_304_640, 9_931_671, 41_757_009),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name, without_values):
    model = without_values(build_model, ModelConfig(backbone=BackboneConfig(name=name)))
    counts = count_parameters(model)
    predictor = sum(counts[part] for part in ("transformer_decoder", "class_head", "mask_head"))
    assert (counts["backbone"], counts["pixel_decoder"], predictor, counts[""]) == PUBLISHED[name]


def test_constants_count_on_request(maskformer):
    trainable, all_weights = count_parameters(maskformer), count_parameters(maskformer, trainable_only=False)
    assert "backbone/stem/conv1/norm" not in trainable
    assert all_weights["backbone/stem/conv1/norm"] == 4 * 64  # scale, offset, mean, variance
    assert trainable["backbone/stem/conv1"] == 7 * 7 * 3 * 64


def test_sums_by_path():
    sums = sums_by_path([("a/b/c", 1), ("a/d", 2), ("e", 4), ("", 8)])
    assert sums == {"": 15, "a": 3, "a/b": 1, "a/b/c": 1, "a/d": 2, "e": 4}
    assert at_depth(sums, 1) == {"a": 3, "e": 4, "total": 15}
    assert at_depth(sums, 2) == {"a": 3, "a/b": 1, "a/d": 2, "e": 4, "total": 15}
    with pytest.raises(ValueError, match=r"`depth` must be at least 1. Received: depth=0"):
        at_depth(sums, 0)


def test_structure_names_every_part(maskformer):
    lines = structure(maskformer).splitlines()
    whole = count_parameters(maskformer, trainable_only=False)[""]
    assert lines[0] == f"MaskFormer maskformer: {whole:,} parameters"
    assert f"  Dense class_head: {32 * 11 + 11:,} parameters" in lines
    assert any(line.startswith("      TransformerDecoderLayer layer_1: ") for line in lines)
