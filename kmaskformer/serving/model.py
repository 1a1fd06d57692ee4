"""An exported model in memory: its signatures and what its metadata say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskformer.inference.segments import instance_segments, panoptic_segments, semantic_segments
from kmaskformer.structures import DatasetInfo, Segment

NEEDED_OUTPUTS = {
    "semantic": ("class_map", "confidence"),
    "panoptic": ("panoptic_map", "num_segments", "segment_ids", "category_ids", "scores", "areas"),
    "instance": ("masks", "num_instances", "category_ids", "scores", "areas", "boxes"),
}

Arrays = dict[str, np.ndarray]


class ServedModel:
    """A SavedModel that `export_saved_model` wrote.

    Args:
        folder: Its folder, or one above it with numbered versions, as TensorFlow Serving has them; the newest counts.
        name: Name in addresses; the folder's by default.

    Raises:
        FileNotFoundError: If there is no SavedModel, or none with metadata.
    """

    def __init__(self, folder: str | os.PathLike, name: str | None = None) -> None:
        base = Path(folder).expanduser().resolve()
        self.folder, self.version = _newest_version(base)
        self.name = name or base.name
        metadata = self.folder / "assets" / "metadata.json"
        if not metadata.is_file():
            raise FileNotFoundError(f"{metadata}: no such file. Export the model with `export_saved_model`.")
        self.metadata: dict[str, Any] = json.loads(metadata.read_text(encoding="utf-8"))
        self.task: str = self.metadata["task"]
        self.info = _label_space(self.metadata)
        self._loaded = tf.saved_model.load(str(self.folder))

    @property
    def signatures(self) -> dict[str, Any]:
        """Inputs and outputs of each signature, as in the metadata: `dtype` and `shape`, -1 where any."""
        return self.metadata["signatures"]

    @property
    def describes_segments(self) -> bool:
        """Whether all outputs are there that a table of segments is made from."""
        return set(NEEDED_OUTPUTS[self.task]) <= set(self.signatures["serving_default"]["outputs"])

    def describe(self) -> dict[str, Any]:
        """Name, version, task and classes, for clients that show its answers; plain JSON."""
        info, things = self.info, set(self.info.thing_ids)
        classes = [
            {"name": name, "color": list(color), "is_thing": index in things}
            for index, (name, color) in enumerate(zip(info.class_names, info.colors, strict=True))
        ]
        facts = {"name": self.name, "version": self.version, "task": self.task, "dataset": info.name}
        return {**facts, "describes_segments": self.describes_segments, "classes": classes}

    def run(self, signature: str, values: np.ndarray) -> Arrays:
        """Outputs of a signature for its one input."""
        (name,) = self.signatures[signature]["inputs"]
        outputs = self._loaded.signatures[signature](**{name: tf.constant(values)})
        return {key: value.numpy() for key, value in outputs.items()}

    def warm_up(self) -> None:
        """Runs a small image, so that the first request need not wait for TensorFlow to prepare the graph."""
        self.run("serving_default", np.zeros((1, 64, 64, 3), np.uint8))

    def segments(self, outputs: Arrays) -> tuple[np.ndarray, list[Segment], np.ndarray | None]:
        """Map, segments and, of instances, masks from the outputs of one image, as a `SegmentationResult` has them."""
        if self.task == "semantic":
            class_map = outputs["class_map"]
            return class_map, semantic_segments(class_map, outputs["confidence"], self.info), None
        if self.task == "panoptic":
            table = {**outputs, "valid": np.arange(len(outputs["scores"])) < outputs["num_segments"]}
            return outputs["panoptic_map"], panoptic_segments(outputs["panoptic_map"], table, self.info), None
        found = {key: value[: outputs["num_instances"]] for key, value in outputs.items() if key != "num_instances"}
        return *instance_segments(found["masks"], found, self.info), found["masks"]


def _newest_version(folder: Path) -> tuple[Path, str]:
    if (folder / "saved_model.pb").is_file():
        return folder, folder.name if folder.name.isdigit() else "1"
    versions = [path for path in folder.glob("*") if path.name.isdigit() and (path / "saved_model.pb").is_file()]
    if not versions:
        raise FileNotFoundError(f"{folder}: no SavedModel, and no folder of numbered versions of one.")
    newest = max(versions, key=lambda path: int(path.name))
    return newest, newest.name


def _label_space(metadata: dict[str, Any]) -> DatasetInfo:
    keys = ("class_names", "thing_ids", "colors", "ignore_value", "dataset_ids")
    return DatasetInfo.from_dict({"name": metadata["dataset"], **{key: metadata[key] for key in keys}})
