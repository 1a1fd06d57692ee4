"""The golden cases: outputs of the original implementation for weights that come from a formula.

Loaded by the fixture `golden` of `conftest.py`, and by `scripts/check_fidelity.py`. `fidelity.py` measures how far a
model is from them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import zlib
from pathlib import Path

import numpy as np

from kmaskformer.config import BackboneConfig, LossConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig

UNTOUCHED = ("relative_position_index", "num_batches_tracked", "criterion.empty_weight")
FACTORS = (
    (r"^backbone\.res\d\.\d+\.conv3\.norm\.weight$", 0.5),
    (r"\.self_attn\.out_proj\.weight$", 0.3),
    (r"\.multihead_attn\.out_proj\.weight$", 4.0),
    (r"\.linear2\.weight$", 0.4),
    (r"\.class_embed\.weight$", 6.0),
    (r"^sem_seg_head\.predictor\.weight$", 4.0),
)
MODELS = {
    "MaskFormerHead": "maskformer",
    "PerPixelBaselineHead": "per_pixel",
    "PerPixelBaselinePlusHead": "per_pixel_plus",
}
SWINS = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base", (192, 18): "swin_large"}
PIXEL_DECODERS = {"BasePixelDecoder": "fpn", "TransformerEncoderPixelDecoder": "transformer_fpn"}


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

    @property
    def is_per_pixel(self) -> bool:
        """Whether the case is of a per-pixel baseline."""
        return self.model_config().name != "maskformer"

    def model_config(self) -> ModelConfig:
        """The case's recipe, without anything random, so that training and inference mode agree."""
        values = self.meta["config_values"]
        head, options = values["SEM_SEG_HEAD"], values["MASK_FORMER"]
        return ModelConfig(
            name=MODELS[head["NAME"]],
            num_classes=head["NUM_CLASSES"],
            backbone=BackboneConfig(_backbone(values), drop_path_rate=0.0),
            pixel_decoder=PixelDecoderConfig(
                PIXEL_DECODERS[head["PIXEL_DECODER_NAME"]],
                head["CONVS_DIM"],
                head["MASK_DIM"],
                encoder_layers=head["TRANSFORMER_ENC_LAYERS"],
                dropout=0.0,
            ),
            transformer_decoder=TransformerDecoderConfig(
                num_queries=options["NUM_OBJECT_QUERIES"],
                encoder_layers=options["ENC_LAYERS"],
                decoder_layers=options["DEC_LAYERS"],
                pre_norm=options["PRE_NORM"],
                in_feature=options["TRANSFORMER_IN_FEATURE"],
                enforce_input_projection=options["ENFORCE_INPUT_PROJ"],
                dropout=0.0,
            ),
            deep_supervision=options["DEEP_SUPERVISION"],
            size_divisibility=values["effective_size_divisibility"],
        )

    def loss_config(self) -> LossConfig:
        """The case's loss."""
        return LossConfig(name="per_pixel" if self.is_per_pixel else "mask_classification")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter under the original's name and in its layout, buffers included."""
        state = {}
        for key, shape, dtype in self.meta["state_dict"]:
            value = self.arrays.get(f"override/{key}", formula_weight(key, shape))
            state[key] = np.zeros(shape, dtype) if value is None else value
        return state

    def pair(self) -> dict[str, np.ndarray]:
        """Both images as one batch."""
        return self._batch("image", self.meta["sizes"])

    def training_pair(self) -> dict[str, np.ndarray]:
        """Both images of the training step as one batch."""
        return self._batch("train_image" if self.is_per_pixel else "image", self.meta["train_sizes"])

    def _batch(self, name: str, sizes: list[list[int]]) -> dict[str, np.ndarray]:
        # What lies outside an image is 255, which only `image_sizes` can undo.
        images = np.full((2, *np.max(sizes, axis=0), 3), 255, "uint8")
        for index, (height, width) in enumerate(sizes):
            images[index, :height, :width] = self.arrays[f"{name}{index}"]
        return {"images": images, "image_sizes": np.array(sizes, "int32")}

    def targets(self) -> dict[str, np.ndarray]:
        """Truth of both images of the training step, at the size of the batch, with the table padded."""
        return self._label_targets() if self.is_per_pixel else self._mask_targets()

    def _mask_targets(self) -> dict[str, np.ndarray]:
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

    def _label_targets(self) -> dict[str, np.ndarray]:
        ignore = self.meta["config_values"]["SEM_SEG_HEAD"]["IGNORE_VALUE"]
        segment_map = np.full((2, *np.max(self.meta["train_sizes"], axis=0)), -1, "int32")
        tables = []
        for index in range(2):
            truth = self.arrays[f"gt{index}/sem_seg"]
            labels = np.setdiff1d(truth, ignore)
            rows = np.where(truth == ignore, -1, np.searchsorted(labels, truth))
            segment_map[index, : truth.shape[0], : truth.shape[1]] = rows
            tables.append(labels)
        size = max(map(len, tables))
        labels = np.stack([np.pad(table, (0, size - len(table))) for table in tables]).astype("int32")
        valid = np.arange(size)[None] < np.array([[len(table)] for table in tables])
        return {"segment_map": segment_map, "labels": labels, "valid": valid}


def _backbone(values: dict) -> str:
    swin, resnet = values["SWIN"], values["RESNETS"]
    if swin:
        return SWINS[swin["EMBED_DIM"], swin["DEPTHS"][2]]
    return f"resnet{resnet['DEPTH']}{'c' if resnet['STEM_TYPE'] == 'deeplab' else ''}"


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
