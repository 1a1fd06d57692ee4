"""The published datasets by name: how each is converted, if it must be, and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kmaskformer.data.cityscapes import Cityscapes
from kmaskformer.data.coco_instance import CocoInstances
from kmaskformer.data.coco_panoptic import CocoPanoptic
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.preparation import ade20k_full, ade20k_panoptic, coco_stuff
from kmaskformer.data.preparation.check import SplitReport, check
from kmaskformer.data.preparation.conversion import Failure, Task, run_tasks
from kmaskformer.data.semantic_folder import SemanticFolder


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A published dataset.

    `splits`: number of images of each, as published. `read`: reader of a split, from the folder and the split's name.
    `tasks`: conversions from the download's folder to the output folder, `finish` what is left after them; None where
    the download is read as it is.
    """

    splits: Mapping[str, int]
    read: Callable[[Path, str], Any]
    tasks: Callable[[Path, Path], list[Task]] | None = None
    finish: Callable[[Path, Path], None] | None = None


def convert(dataset: Dataset, source: Path, output: Path, workers: int = 0) -> list[Failure]:
    """Converts a download; what an earlier run has converted is left as it is, unless its sources are newer.

    Args:
        dataset: One of `DATASETS`.
        source: Folder of the download.
        output: Folder of the result.
        workers: Images at a time; 0 for one per processor.

    Returns:
        The files that could not be converted. The result is finished without them.

    Raises:
        FileNotFoundError: If the download is not complete.
    """
    if dataset.tasks is None:
        return []
    failures = run_tasks(dataset.tasks(source, output), workers)
    if dataset.finish is not None:
        dataset.finish(source, output)
    return failures


def check_splits(dataset: Dataset, folder: Path, workers: int = 0) -> list[SplitReport]:
    """Reads all of a dataset."""
    return [check(split, dataset.read(folder, split), expected, workers) for split, expected in dataset.splits.items()]


def _semantic(classes: str, images: str, labels: str) -> Callable[[Path, str], SemanticFolder]:
    """Reader of label PNGs; the patterns have the split's name for `{split}`."""

    def read(folder: Path, split: str) -> SemanticFolder:
        patterns = (pattern.replace("{split}", split) for pattern in (images, labels))
        return SemanticFolder(*patterns, label_space(classes), root=folder)

    return read


def _cityscapes(panoptic: bool) -> Callable[[Path, str], Cityscapes]:
    return lambda folder, split: Cityscapes(f"leftImg8bit/{split}", f"gtFine/{split}", panoptic, root=folder)


def _read_ade20k_panoptic(folder: Path, split: str) -> CocoPanoptic:
    names = (f"images/{split}", f"panoptic/{split}", f"panoptic_{split}.json")
    return CocoPanoptic(*names, label_space("ade20k_150"), root=folder)


def _read_coco_panoptic(folder: Path, split: str) -> CocoPanoptic:
    return CocoPanoptic(split, f"panoptic_{split}", f"annotations/panoptic_{split}.json", root=folder)


def _read_coco_instances(folder: Path, split: str) -> CocoInstances:
    return CocoInstances(split, f"annotations/instances_{split}.json", root=folder)


_ADE20K_SPLITS = {"training": 20210, "validation": 2000}
_CITYSCAPES_SPLITS = {"train": 2975, "val": 500}
_COCO_SPLITS = {"train2017": 118287, "val2017": 5000}
_BY_SPLIT = ("images/{split}/*.jpg", "annotations/{split}/{stem}.png")

DATASETS = {
    "ade20k": Dataset(_ADE20K_SPLITS, _semantic("ade20k_150", *_BY_SPLIT)),
    "ade20k_full": Dataset(
        {"training": 25574, "validation": 2000}, _semantic("ade20k_full_847", *_BY_SPLIT), ade20k_full.tasks
    ),
    "ade20k_panoptic": Dataset(_ADE20K_SPLITS, _read_ade20k_panoptic, ade20k_panoptic.tasks, ade20k_panoptic.finish),
    "coco_stuff": Dataset({"train": 9000, "test": 1000}, _semantic("coco_stuff_171", *_BY_SPLIT), coco_stuff.tasks),
    "cityscapes": Dataset(_CITYSCAPES_SPLITS, _cityscapes(panoptic=False)),
    "cityscapes_panoptic": Dataset(_CITYSCAPES_SPLITS, _cityscapes(panoptic=True)),
    "mapillary": Dataset(
        {"training": 18000, "validation": 2000},
        _semantic("mapillary_vistas_65", "{split}/images/*.jpg", "{split}/labels/{stem}.png"),
    ),
    "coco_panoptic": Dataset(_COCO_SPLITS, _read_coco_panoptic),
    "coco_instance": Dataset(_COCO_SPLITS, _read_coco_instances),
}
"""The recipes' datasets by their names in `scripts/prepare_dataset.py`."""
