"""MaskFormer for Keras 3: semantic, instance and panoptic segmentation by mask classification."""

from __future__ import annotations

from typing import Any

from kmaskformer.build import (
    build_criterion,
    build_dataset,
    build_evaluators,
    build_model,
    build_optimizer,
)
from kmaskformer.checkpoints.reference_names import load_reference_weights
from kmaskformer.config import load_config
from kmaskformer.evaluation.run import evaluate
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import DatasetInfo
from kmaskformer.version import __version__

__all__ = [
    "DatasetInfo",
    "MaskFormer",
    "Segmenter",
    "__version__",
    "build_criterion",
    "build_dataset",
    "build_evaluators",
    "build_model",
    "build_optimizer",
    "distribution_strategy",
    "evaluate",
    "export_saved_model",
    "load_config",
    "load_reference_weights",
]


def __getattr__(name: str) -> Any:
    # The public names that need TensorFlow at import; JAX users may not have it.
    if name == "distribution_strategy":
        from kmaskformer.training.distribution import distribution_strategy

        return distribution_strategy
    if name == "export_saved_model":
        from kmaskformer.export.saved_model import export_saved_model

        return export_saved_model
    raise AttributeError(f"module 'kmaskformer' has no attribute {name!r}. Public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
