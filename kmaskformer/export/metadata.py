"""What an export says about itself: the label space, thresholds, licence and configuration, as plain JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kmaskformer.segmenter import Segmenter
from kmaskformer.version import __version__

METADATA_FILE = "metadata.json"
FORMAT_VERSION = 1
CODE_LICENSE = "Apache-2.0"
NO_LICENSE = "not stated; weights may be bound by the licence of their training data"


def describe(segmenter: Segmenter, config: Any = None, license: str | None = None, **facts: Any) -> dict[str, Any]:
    """The record of an export, ready for JSON.

    Args:
        segmenter: What is exported.
        config: The resolved configuration of the run, a dataclass or a mapping; that of the model alone if None.
        license: Licence of the weights.
        **facts: Whatever else the format knows, such as its signatures.
    """
    post, info = segmenter.postprocess, segmenter.info.to_dict()
    return {
        "format_version": FORMAT_VERSION,
        "kmaskformer_version": __version__,
        "task": segmenter.task,
        "inference": post.inference,
        "dataset": info.pop("name"),
        **info,
        "shortest_edge": segmenter.shortest_edge,
        "longest_edge": segmenter.longest_edge,
        **post.thresholds,
        "before_inference": post.before_inference,
        "license": license or NO_LICENSE,
        "code_license": CODE_LICENSE,
        **facts,
        "config": _plain_config(segmenter.model if config is None else config),
    }


def write_metadata(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as indented JSON."""
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _plain_config(config: Any) -> Any:
    if isinstance(config, keras.Model):
        return {"model": keras.saving.serialize_keras_object(config)["config"]}
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)
