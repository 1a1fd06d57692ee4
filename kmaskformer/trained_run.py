"""What a finished run left: its model, its configuration, and a segmenter that works as it was evaluated."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import keras

from kmaskformer import build, build_data
from kmaskformer.checkpoints.model_files import read_model
from kmaskformer.config import Config, load_config
from kmaskformer.inference.augmented import Augmentation
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import TASKS

MODEL_FILE = "model.keras"
CONFIG_FILE = "config.yaml"


def load_model(weights: str | Path, config: Config | None = None, dataset_info: Any = None) -> keras.Model:
    """A trained model.

    Args:
        weights: A run's folder, a `.keras` file, or a `.weights.h5` file with its `config.yaml` beside it.
        config: Configuration of the model, needed for a `.weights.h5` file without one. With a `.keras` file, it must
            name the same kind of model and number of classes.
        dataset_info: Label space of the model, for files that carry none.

    Raises:
        FileNotFoundError: If the file, or the configuration it needs, does not exist.
        ValueError: If the file has another format or does not fit the configuration.
    """
    path = Path(weights)
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file. A finished run has {MODEL_FILE} in its folder.")
    if path.suffix == ".keras":
        model = read_model(path)
        if config is not None:
            _check_kind(path, model, config)
    else:
        config = config or run_config(path)
        if config is None:
            raise FileNotFoundError(
                f"{path}: weights alone do not say which model they belong to. "
                f"Put the run's {CONFIG_FILE} beside them, or use {MODEL_FILE}."
            )
        if dataset_info is None:
            dataset_info = _label_space(config)
        model = build.build_model(dataclasses.replace(config.model, weights=str(path)), dataset_info)
    if getattr(model, "dataset_info", None) is None and dataset_info is not None:
        model.dataset_info = dataset_info
    return model


def _check_kind(path: Path, model: Any, config: Config) -> None:
    """A whole model tells itself what it is: that must be what the configuration says."""
    expected = (build.MODELS[config.model.name].__name__, config.model.num_classes)
    found = (type(model).__name__, getattr(model, "num_classes", None))
    if found != expected:
        raise ValueError(
            f"{path} holds a {found[0]} of {found[1]} classes, the configuration describes a {expected[0]} of "
            f"{expected[1]}. Give the configuration that it was trained with, the run's {CONFIG_FILE}."
        )


def _label_space(config: Config) -> Any:
    """Class names of a configuration's dataset; `None`, with a warning, where its files are not at hand."""
    try:
        return build_data.build_reader(config.data, "val").info
    except (OSError, ValueError) as error:
        warnings.warn(f"class names are unknown and all classes count as stuff: {error}", stacklevel=3)
        return None


def run_config(weights: str | Path) -> Config | None:
    """The resolved configuration beside a run's weights, or `None`."""
    path = Path(weights)
    path = (path if path.is_dir() else path.parent) / CONFIG_FILE
    return load_config(path) if path.is_file() else None


def build_segmenter(
    model: keras.Model,
    config: Config | None,
    task: str,
    inference: str = "default",
    augmentation: Augmentation | None = None,
) -> Segmenter:
    """A segmenter with the sizes, thresholds and, unless for instances, tiles that a configuration evaluates with."""
    if config is None:
        return Segmenter(model, task=task, inference=inference, augmentation=augmentation)
    evaluation, data = config.evaluation, config.data
    general = inference == "general"
    return Segmenter(
        model,
        task=task,
        inference=inference,
        shortest_edge=data.test_shortest_edge or None,
        longest_edge=(data.test_longest_edge or None) if data.test_shortest_edge else None,
        object_mask_threshold=None if general else evaluation.object_mask_threshold,
        overlap_threshold=None if general else evaluation.overlap_threshold,
        score_threshold=evaluation.score_threshold,
        before_inference=evaluation.before_inference,
        augmentation=augmentation,
        tiling=build.build_tiling(evaluation) if augmentation is None and task != "instance" else None,
    )


def picture_task(config: Config) -> str:
    """The task that a run's pictures show: the first thing it is evaluated on."""
    metric = config.evaluation.metrics[0] if config.evaluation.metrics else "semantic"
    return metric if metric in TASKS else "semantic"
