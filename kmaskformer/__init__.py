"""MaskFormer for Keras 3: semantic, instance and panoptic segmentation by mask classification."""

from __future__ import annotations

from typing import Any

from kmaskformer import data
from kmaskformer.build import build_criterion, build_evaluators, build_model, build_optimizer
from kmaskformer.build_data import build_dataset
from kmaskformer.checkpoints.backbone_names import load_backbone_weights
from kmaskformer.checkpoints.huggingface_export import export_to_huggingface
from kmaskformer.checkpoints.reference_names import load_reference_weights
from kmaskformer.config import load_config
from kmaskformer.evaluation.run import evaluate
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.presets import from_preset, list_presets, save_to_preset
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import DatasetInfo
from kmaskformer.version import __version__

__all__ = [
    "DatasetInfo",
    "MaskFormer",
    "PerPixelBaseline",
    "PerPixelBaselinePlus",
    "Segmenter",
    "__version__",
    "build_criterion",
    "build_dataset",
    "build_evaluators",
    "build_model",
    "build_optimizer",
    "data",
    "distribution_strategy",
    "evaluate",
    "export_onnx",
    "export_saved_model",
    "export_to_huggingface",
    "from_preset",
    "list_presets",
    "load_backbone_weights",
    "load_config",
    "load_reference_weights",
    "save_to_preset",
]


def __getattr__(name: str) -> Any:
    # Names that need TensorFlow, which JAX users may not have, or the time to import converters.
    if name == "distribution_strategy":
        from kmaskformer.training.distribution import distribution_strategy

        return distribution_strategy
    if name == "export_saved_model":
        from kmaskformer.export.saved_model import export_saved_model

        return export_saved_model
    if name == "export_onnx":
        from kmaskformer.export.onnx import export_onnx

        return export_onnx
    raise AttributeError(f"module 'kmaskformer' has no attribute {name!r}. Public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
