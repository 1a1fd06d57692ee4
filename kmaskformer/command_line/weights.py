"""What `--weights` may name: files and folders of a training run, and presets."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

from kmaskformer import trained_run
from kmaskformer.checkpoints.preset_config import is_preset
from kmaskformer.config import Config
from kmaskformer.inference.postprocess import INFERENCES
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.presets import from_preset
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import TASKS

WEIGHTS_HELP = (
    ".keras or .weights.h5 file, a run's folder, a preset's folder, hf://OWNER/NAME, the name of a published model, or "
    "its file (.pkl, .pth, .bin, .safetensors)"
)

THRESHOLDS = {
    "object_mask_threshold": "least score of a panoptic segment",
    "overlap_threshold": "least part of its mask that a panoptic segment keeps",
    "score_threshold": "least score of an instance",
}
FOREIGN_SUFFIXES = (".pkl", ".pth", ".bin", ".safetensors")
"""Endings of others' files, which are read but not written."""


def model_or_run(weights: str) -> SegmentationModel | str:
    """The model of a preset or of others' file; the argument itself where a training run left it.

    Args:
        weights: What `WEIGHTS_HELP` says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such preset, or a file is not what it should be.
    """
    return from_preset(weights) if _names_preset(weights) else weights


def add_result_options(parser: argparse.ArgumentParser, default_task: str) -> None:
    """Adds the options that say which result is made of a model's outputs: task, inference and thresholds.

    Args:
        parser: The parser.
        default_task: Task of models without a run, which tell none.
    """
    parser.set_defaults(default_task=default_task)
    parser.add_argument("--task", choices=TASKS, help=f"that of the run by default, {default_task} for other models")
    parser.add_argument(
        "--inference", default="default", choices=INFERENCES, help="general: the paper's one rule for all tasks"
    )
    for name, text in THRESHOLDS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            metavar="0..1",
            help=f"{text}; by default that of the run, or of the published model",
        )


def open_segmenter(weights: str, options: argparse.Namespace) -> tuple[Segmenter, Config | None]:
    """A segmenter that works as the model was evaluated, and the run's configuration where there is one.

    Args:
        weights: A `.keras` or `.weights.h5` file or a run's folder, whose `config.yaml` says task, sizes and
            thresholds; or any other source of `from_preset`.
        options: What `add_result_options` parsed, which goes before.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such preset, or the model cannot do the task.
    """
    model = model_or_run(weights)
    if isinstance(model, str):
        config = trained_run.run_config(weights)
        task = options.task or (options.default_task if config is None else trained_run.picture_task(config))
        segmenter = trained_run.build_segmenter(trained_run.load_model(weights), config, task, options.inference)
    else:
        config, known = None, model.preset_info.segmenter_options
        if options.inference == "general":
            known.pop("object_mask_threshold", None)  # that of the default rule
        segmenter = Segmenter(model, task=options.task or options.default_task, inference=options.inference, **known)
    given = {name: value for name in THRESHOLDS if (value := getattr(options, name)) is not None}
    _warn_of_unused(segmenter, given)
    segmenter.postprocess = dataclasses.replace(segmenter.postprocess, **given)
    return segmenter, config


def _warn_of_unused(segmenter: Segmenter, given: Iterable[str]) -> None:
    """Says which thresholds the task does not read: their user may believe that the results depend on them."""
    task, general = segmenter.task, segmenter.postprocess.inference == "general"
    used = {
        "object_mask_threshold": task == "panoptic" or general,
        "overlap_threshold": task == "panoptic" or (general and task == "instance"),
        "score_threshold": task == "instance",
    }
    for name in given:
        if not used[name]:
            print(f"warning: --{name.replace('_', '-')} has no effect on {task} results", file=sys.stderr)


def _names_preset(weights: str) -> bool:
    path = Path(weights)
    if path.is_dir():
        return is_preset(path) or (path / "config.json").is_file()
    if weights.startswith("hf://"):
        return True
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights file")
        return True
    return not (path.exists() or path.suffix or len(path.parts) > 1)
