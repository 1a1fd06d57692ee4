"""Predictions of a whole dataset as the files that the official tools and `scripts/evaluate_files.py` read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.evaluation.files import (
    PanopticWriter,
    UniqueNames,
    file_id,
    instance_record,
    write_instances,
    write_label_map,
)
from kmaskformer.structures import VOID, DatasetInfo


class PredictionFiles:
    """Collects the results of many images in the format of one task.

    - Panoptic: `panoptic.json` and the folder `panoptic/` of PNGs, COCO's panoptic format.
    - Instance: `instances.json`, COCO's list of results with run-length masks.
    - Semantic: `labels/<name>.png`, one channel with the dataset's own class ids, no-class pixels as 255, or as 65535
      where a class has an id of 255 or more.

    Args:
        folder: Folder to write into; made if it is missing.
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        info: The label space; its `dataset_ids` are written.
    """

    def __init__(self, folder: str | os.PathLike, task: str, info: DatasetInfo) -> None:
        self.folder = Path(folder)
        self.task = task
        self.info = info
        self._panoptic = PanopticWriter(self.folder / "panoptic.json", info) if task == "panoptic" else None
        self._instances: list[dict[str, Any]] = []
        self._names = UniqueNames()

    def add(self, name: str, result: Any) -> None:
        """Takes in the result of one image.

        Args:
            name: Name of the image, unique; made of digits it is a COCO image id.
            result: A `SegmentationResult` of the task.

        Raises:
            ValueError: If an earlier image has the same name, or one that makes the same COCO image id (`1` and `01`).
        """
        if self._panoptic is not None:
            self._panoptic.add(name, result.segmentation, result.segments)
        elif self.task == "instance":
            self._names.add(name, file_id(name))
            for segment, mask in zip(result.segments, result.masks, strict=True):
                dataset_id = self.info.dataset_ids[segment["category_id"]]
                self._instances.append(instance_record(name, dataset_id, segment["score"], mask))
        else:
            self._names.add(name, name)
            void = 255 if max(self.info.dataset_ids) < 255 else 65535
            labels = np.where(result.segmentation == VOID, self.info.num_classes, result.segmentation)
            write_label_map(self.folder / "labels" / f"{name}.png", labels, (*self.info.dataset_ids, void))

    def save(self) -> Path:
        """Writes what covers all images, and returns the JSON, or the folder of the PNGs."""
        if self._panoptic is not None:
            return self._panoptic.save()
        if self.task == "semantic":
            return self.folder / "labels"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_instances(self.folder / "instances.json", self._instances)
        return self.folder / "instances.json"
