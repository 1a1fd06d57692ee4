"""How a folder that `save_to_preset` wrote is told from one of Hugging Face: both have a `config.json`."""

from __future__ import annotations

from pathlib import Path

from kmaskformer.json_files import read_json_object_or_empty

CONFIG = "config.json"


def is_preset(folder: Path) -> bool:
    """Whether a folder's configuration is that of a model of this package, as Keras serialises it."""
    try:
        config = read_json_object_or_empty(folder / CONFIG)
    except ValueError:
        return False
    return str(config.get("registered_name", "")).startswith("kmaskformer>")
