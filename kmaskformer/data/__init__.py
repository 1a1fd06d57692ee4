"""Data: readers, transforms and the `tf.data` pipeline. What needs TensorFlow is imported when it is first used."""

from __future__ import annotations

from typing import Any

from kmaskformer.data.sources import (
    from_coco_json,
    from_coco_panoptic,
    from_examples,
    from_folders,
    from_tfds,
)
from kmaskformer.data.subset import Subset, split

__all__ = [
    "Subset",
    "evaluation_dataset",
    "from_coco_json",
    "from_coco_panoptic",
    "from_examples",
    "from_folders",
    "from_tfds",
    "split",
    "standard_transforms",
    "training_dataset",
]


def __getattr__(name: str) -> Any:
    if name in ("training_dataset", "evaluation_dataset"):
        from kmaskformer.data import pipeline

        return getattr(pipeline, name)
    if name == "standard_transforms":
        from kmaskformer.data.augmentation import standard_transforms

        return standard_transforms
    raise AttributeError(f"module 'kmaskformer.data' has no attribute {name!r}. Public names: {', '.join(__all__)}")
