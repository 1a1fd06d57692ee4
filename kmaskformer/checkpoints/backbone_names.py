"""Weights of image classifiers for backbones: name maps, and recognising which one a file needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.checkpoints.huggingface_names import (
    canonical_name,
    huggingface_backbone_source,
    huggingface_source,
)
from kmaskformer.checkpoints.loading import LoadReport, NameMap, Source, load_weights_by_name
from kmaskformer.checkpoints.reference_names import read_arrays, reference_parameter

OUTPUT_NORMS = re.compile(r"^backbone/norm[0-3]/")
"""Swin's norms of its four outputs, which an image classifier does not have."""

_TORCHVISION = (
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"^stem\.", ""),
    (r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
)


def load_backbone_weights(backbone_or_model: Any, arrays_or_path: Mapping[str, np.ndarray] | str | Path) -> LoadReport:
    """Set the weights of a backbone from a published image classifier, or from another MaskFormer.

    Understood, by the names in the file: ResNet of torchvision, timm, detectron2 (`R-50.pkl`, `R-103.pkl`) and Hugging
    Face; Swin of Microsoft, timm (all versions) and Hugging Face; MaskFormer checkpoints of the reference and of
    Hugging Face, of which the heads are ignored.

    Args:
        backbone_or_model: A built `ResNet` or `SwinTransformer`, or a built model that has one.
        arrays_or_path: `{name: array}` in PyTorch's layout, or a file that holds them.

    Returns:
        What went where. The norms of Swin's outputs stay fresh where the file is an image classifier's.

    Raises:
        TypeError: If the backbone is of another kind, or the arrays are neither a mapping nor a path.
        ValueError: If the names are of no known kind, or of another backbone, or do not fit; nothing is set then.
    """
    backbone = backbone_or_model
    while hasattr(backbone, "backbone"):  # of a model, and of what appends coordinates
        backbone = backbone.backbone
    if not isinstance(backbone, (ResNet, SwinTransformer)):
        raise TypeError(
            f"`backbone_or_model` must be, or have as its backbone, a ResNet or a SwinTransformer. "
            f"Received: {type(backbone).__name__}"
        )
    arrays = read_arrays(arrays_or_path, "arrays_or_path")
    return load_weights_by_name(backbone, arrays, find_backbone_map(backbone, arrays))


class _Kind(NamedTuple):
    """One kind of file: which backbone it is for, and two names that together tell it from all others."""

    backbone: type
    marks: tuple[str, str]
    name_map: NameMap


def find_backbone_map(backbone: Any, names: Mapping[str, Any]) -> NameMap:
    """The name map for a file that holds these names.

    Raises:
        ValueError: If no map knows the names, or the one that does is for another kind of backbone.
    """
    fitting = [kind for kind in _KINDS if all(mark in names for mark in kind.marks)]
    for kind in fitting:
        if isinstance(backbone, kind.backbone):
            return kind.name_map
    if fitting:
        raise ValueError(
            f"The names are those of {fitting[0].name_map.title}, but the backbone is a {type(backbone).__name__}."
        )
    first = ", ".join(sorted(names)[:5]) or "none"
    raise ValueError(
        f"The names of the arrays are those of no known backbone. Received {len(names)} names, first: {first}. "
        "Recognised are: " + "; ".join(f"{kind.name_map.title} ({', '.join(kind.marks)})" for kind in _KINDS)
    )


def _detectron2_source(path: str) -> Source:
    key, third = reference_parameter(path)
    return Source((key.removeprefix("backbone."),), third)


def _torchvision_source(path: str) -> Source:
    key = _detectron2_source(path).keys[0]
    for pattern, replacement in _TORCHVISION:
        key = re.sub(pattern, replacement, key)
    return Source((key,))


def _late_downsample(name: str) -> str:
    """timm, from 0.9 on, has the step to a stage's resolution at its beginning, not at the end of the one before."""
    return re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)


def _plain_stem(name: str) -> str:
    """Some files count the convolutions of a deep stem as parts of the first one."""
    return re.sub(r"^stem\.conv1_([123])\.", r"stem.conv\1.", name)


def _without(*prefixes: str) -> Any:
    def canonical(name: str) -> str:
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        return canonical_name(name)

    return canonical


def _ignored(names: str) -> re.Pattern[str]:
    return re.compile(rf"^({names})|(num_batches_tracked|relative_position_index|attn_mask|position_ids)$")


_SWIN = {"ignored": _ignored(r"(norm|head|head\.fc)\.(weight|bias)$"), "fresh": OUTPUT_NORMS}
_CLASSIFIER = _ignored(r"fc\.|classifier\.|stem\.fc\.|(model\.)?layernorm\.|pooler\.")
_HEADS = _ignored(r"sem_seg_head\.|criterion\.|pixel_mean$|pixel_std$")
_HF_HEADS = _ignored(
    r"model\.pixel_level_module\.(decoder|encoder\.model\.layernorm)\.|model\.transformer_module\.|class_predictor\."
    r"|mask_embedder\.|criterion\."
)
_REFERENCE = NameMap("a reference MaskFormer", lambda path: Source((reference_parameter(path).key,)), ignored=_HEADS)
_HUGGINGFACE = NameMap(
    "a Hugging Face MaskFormer",
    huggingface_source,
    canonical_name,
    ignored=_HF_HEADS,
)
_HF_PREFIX = "model.pixel_level_module.encoder."
_KINDS = (
    _Kind(
        ResNet,
        ("conv1.weight", "layer1.0.conv1.weight"),
        NameMap("a torchvision or timm ResNet", _torchvision_source, ignored=_CLASSIFIER),
    ),
    _Kind(
        ResNet,
        ("stem.conv1.weight", "res2.0.conv1.weight"),
        NameMap("a detectron2 ResNet", _detectron2_source, ignored=_CLASSIFIER),
    ),
    _Kind(
        ResNet,
        ("stem.conv1_1.weight", "res2.0.conv1.weight"),
        NameMap("a detectron2 ResNet with a deep stem", _detectron2_source, _plain_stem, _CLASSIFIER),
    ),
    *(
        _Kind(
            ResNet,
            (
                f"{prefix}embedder.embedder.convolution.weight",
                f"{prefix}encoder.stages.0.layers.0.layer.0.convolution.weight",
            ),
            NameMap("a Hugging Face ResNet", huggingface_backbone_source, _without("resnet."), _CLASSIFIER),
        )
        for prefix in ("resnet.", "")
    ),
    _Kind(
        SwinTransformer,
        ("patch_embed.proj.weight", "layers.0.downsample.reduction.weight"),
        NameMap("a Swin of Microsoft, or of timm before 0.9", _detectron2_source, **_SWIN),
    ),
    _Kind(
        SwinTransformer,
        ("patch_embed.proj.weight", "layers.3.downsample.reduction.weight"),
        NameMap("a Swin of timm from 0.9 on", _detectron2_source, _late_downsample, **_SWIN),
    ),
    *(
        _Kind(
            SwinTransformer,
            (
                f"{prefix}embeddings.patch_embeddings.projection.weight",
                f"{prefix}encoder.layers.0.downsample.reduction.weight",
            ),
            NameMap(
                "a Hugging Face Swin",
                huggingface_backbone_source,
                _without("swin."),
                _CLASSIFIER,
                OUTPUT_NORMS,
            ),
        )
        for prefix in ("swin.", "")
    ),
    _Kind(ResNet, ("backbone.stem.conv1.weight", "backbone.res2.0.conv1.weight"), _REFERENCE),
    _Kind(SwinTransformer, ("backbone.patch_embed.proj.weight", "backbone.norm0.weight"), _REFERENCE),
    _Kind(
        ResNet,
        (f"{_HF_PREFIX}embedder.embedder.convolution.weight", "class_predictor.weight"),
        _HUGGINGFACE,
    ),
    _Kind(
        SwinTransformer,
        (f"{_HF_PREFIX}hidden_states_norms.0.weight", "class_predictor.weight"),
        _HUGGINGFACE,
    ),
)
