"""MaskFormer for Keras 3: semantic, instance and panoptic segmentation by mask classification.

Public names resolve when they are first used, so that `import kmaskformer` is quick and needs no TensorFlow where the
JAX or PyTorch backend of Keras is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from kmaskformer.version import __version__

_PUBLIC = {
    "DatasetInfo": "structures",
    "MaskFormer": "models.maskformer",
    "Segmenter": "segmenter",
    "build_criterion": "build",
    "build_dataset": "build",
    "build_evaluators": "build",
    "build_model": "build",
    "build_optimizer": "build",
    "distribution_strategy": "training.distribution",
    "evaluate": "evaluation.run",
    "load_config": "config",
    "load_reference_weights": "checkpoints.reference_names",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kmaskformer' has no attribute {name!r}. Public names: {', '.join(_PUBLIC)}")
    value = getattr(importlib.import_module(f"kmaskformer.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
