"""Saving a model in the middle of a training: whole files."""

from __future__ import annotations

from pathlib import Path

import keras

from kmaskformer.weights_file import save_weights
from kmaskformer.whole_files import written_to_disk


def current_step(model: keras.Model) -> int:
    """Optimizer updates that `model` has had."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def save_model(model: keras.Model, path: str | Path) -> None:
    """Saves weights (`*.weights.h5`) or the whole model (`*.keras`); an older file stays until the new one is done.

    Args:
        model: A built model.
        path: File to write; its folder is created. A `.keras` file has the optimizer's state too, if compiled.

    Raises:
        ValueError: If `path` has another ending.
    """
    path = Path(path)
    if not path.name.endswith((".weights.h5", ".keras")):
        raise ValueError(f"`path` must end in .weights.h5 or .keras. Received: path={path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_to_disk(path) as aside:
        write_model(model, aside)


def write_model(model: keras.Model, path: Path) -> None:
    """Writes the file in place, `*.weights.h5` or `*.keras`; `save_model` without its care for an older one."""
    if path.name.endswith(".keras"):
        model.save(path)
        return
    save_weights(model, path)
