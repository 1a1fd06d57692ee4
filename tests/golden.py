"""The golden cases: outputs of the original implementation for weights that come from a formula.

Loaded by the fixture `golden` of `conftest.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import zlib
from pathlib import Path

import numpy as np

from kmaskformer.config import BackboneConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig

UNTOUCHED = ("relative_position_index", "num_batches_tracked", "criterion.empty_weight")
FACTORS = (
    (r"^backbone\.res\d\.\d+\.conv3\.norm\.weight$", 0.5),
    (r"\.self_attn\.out_proj\.weight$", 0.3),
    (r"\.multihead_attn\.out_proj\.weight$", 4.0),
    (r"\.linear2\.weight$", 0.4),
    (r"\.class_embed\.weight$", 6.0),
)
CASES = {
    "maskformer_r50_ade20k150": ("resnet50", 150, 32),
    "maskformer_r50_6enc_coco_panoptic": ("resnet50", 133, 0),
    "maskformer_r101c_cityscapes19": ("resnet101c", 19, 32),
    "maskformer_swin_t_ade20k150": ("swin_tiny", 150, 32),
}


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One folder of golden outputs."""

    name: str
    folder: Path

    @functools.cached_property
    def meta(self) -> dict:
        return json.loads((self.folder / "meta.json").read_text())

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / "arrays.npz"))

    def model_config(self) -> ModelConfig:
        """The case's recipe, without anything random, so that training and inference mode agree."""
        backbone, num_classes, divisibility = CASES[self.name]
        with_encoder = "6enc" in self.name
        return ModelConfig(
            num_classes=num_classes,
            backbone=BackboneConfig(backbone, drop_path_rate=0.0),
            pixel_decoder=PixelDecoderConfig("transformer_fpn" if with_encoder else "fpn", dropout=0.0),
            transformer_decoder=TransformerDecoderConfig(
                dropout=0.0, in_feature="transformer_encoder" if with_encoder else "res5"
            ),
            size_divisibility=divisibility,
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter under the original's name and in its layout, buffers included."""
        state = {}
        for key, shape, dtype in self.meta["state_dict"]:
            value = self.arrays.get(f"override/{key}", formula_weight(key, shape))
            state[key] = np.zeros(shape, dtype) if value is None else value
        return state

    def pair(self) -> dict[str, np.ndarray]:
        """Both images as one batch. What lies outside an image is 255, which only `image_sizes` can undo."""
        sizes = np.array(self.meta["sizes"], "int32")
        images = np.full((2, *sizes.max(0), 3), 255, "uint8")
        for index, (height, width) in enumerate(sizes):
            images[index, :height, :width] = self.arrays[f"image{index}"]
        return {"images": images, "image_sizes": sizes}

    def targets(self) -> dict[str, np.ndarray]:
        """Masks of both images, at the size of the batch, with the table padded."""
        height, width = np.array(self.meta["sizes"]).max(0)
        counts = [len(labels) for labels in self.meta["labels"]]
        masks = np.zeros((2, max(counts), height, width), "uint8")
        labels, valid = np.zeros((2, max(counts)), "int32"), np.zeros((2, max(counts)), bool)
        for index, count in enumerate(counts):
            truth = self.arrays[f"gt{index}/masks"]
            masks[index, :count, : truth.shape[1], : truth.shape[2]] = truth
            labels[index, :count] = self.arrays[f"gt{index}/labels"]
            valid[index, :count] = True
        return {"masks": masks, "labels": labels, "valid": valid}


def formula_weight(key: str, shape: list[int]) -> np.ndarray | None:
    """The weight of this name; None where the built-in value stays."""
    if key.endswith(UNTOUCHED):
        return None
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype("float32")
    leaf = key.split(".")[-1]
    if leaf == "relative_position_bias_table":
        return np.float32(0.5) * noise
    if key.endswith("query_embed.weight"):
        return noise
    if leaf == "running_var":
        return 1 + np.float32(0.1) * np.abs(noise)
    if leaf in ("weight", "in_proj_weight") and len(shape) > 1:
        value = noise * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    elif leaf == "weight":
        value = 1 + np.float32(0.1) * noise
    else:
        value = np.float32(0.1) * noise
    if key.endswith(".input_proj.weight"):
        value = value * np.float32(4 if shape[1] == 2048 else 2)
    for pattern, factor in FACTORS:
        if re.search(pattern, key):
            value = value * np.float32(factor)
    return value


def sample(values: np.ndarray) -> np.ndarray:
    """The values of a tensor (N C H W) that the golden files keep."""
    values = np.asarray(values)
    return values.ravel()[(np.arange(min(2000, values.size)) * 1000003) % values.size]
