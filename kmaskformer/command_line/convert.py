"""`kmaskformer convert`, `scripts/convert_weights.py`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmaskformer.build import build_model
from kmaskformer.checkpoints.convert import KERAS_SUFFIXES, load_checkpoint
from kmaskformer.checkpoints.huggingface_export import export_to_huggingface
from kmaskformer.checkpoints.loading import LoadReport
from kmaskformer.checkpoints.preset_config import is_preset
from kmaskformer.command_line.command import make_parser, one_line_errors
from kmaskformer.command_line.weights import FOREIGN_SUFFIXES
from kmaskformer.config import load_config
from kmaskformer.presets import from_preset, save_to_preset
from kmaskformer.training.saving import write_model
from kmaskformer.whole_files import written_whole

DESCRIPTION = """\
Convert a published checkpoint, without PyTorch, and print a table of what went where. Reads files of detectron2,
PyTorch, safetensors and Keras, folders of transformers, and presets."""

EXAMPLES = """\
  kmaskformer convert model_final_d4e29e.pkl swin_tiny.weights.h5
  kmaskformer convert path/to/maskformer-swin-base-ade swin_base.keras
  kmaskformer convert model_final.pkl presets/mine --config configs/ade20k/semantic/... --num-classes 7"""

NOT_WRITTEN = (".h5", *FOREIGN_SUFFIXES)
"""Endings that no destination has; a folder of such a name would be taken for a file."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("convert", DESCRIPTION, EXAMPLES)
    parser.add_argument("source", type=Path, help="checkpoint file, Hugging Face folder, or preset folder")
    parser.add_argument("destination", type=Path, help=".weights.h5 or .keras file, or a folder: a preset")
    parser.add_argument("--config", help="configuration of the model; by default told from the source")
    parser.add_argument("--num-classes", type=int, help="another number of classes; the class head is left fresh")
    parser.add_argument("--huggingface", action="store_true", help="write a folder for transformers, not a preset")
    options = parser.parse_args(arguments)
    if options.source.resolve() == options.destination.resolve():
        parser.error("DESTINATION must differ from SOURCE, which is read while the other is written")
    if options.huggingface and options.destination.name.endswith(KERAS_SUFFIXES):
        parser.error("--huggingface writes a folder; name one as DESTINATION")
    if options.destination.suffix.lower() in NOT_WRITTEN and not options.destination.name.endswith(KERAS_SUFFIXES):
        parser.error(f"DESTINATION must end in .weights.h5 or .keras, or be a folder. Received: {options.destination}")
    if options.config and is_preset(options.source):
        parser.error("--config does not apply to a preset, which says itself which model it is")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and convert."""
    options = parse_arguments(arguments)
    with one_line_errors():
        report = convert(options)
    if report is not None:
        print(report)
    print(f"written: {options.destination}")
    return 0


def convert(options: argparse.Namespace) -> LoadReport | None:
    make_model = None
    if options.config:
        make_model = functools.partial(_build, options.config, options.num_classes)
    if make_model is None and is_preset(options.source):
        model, report = from_preset(options.source, num_classes=options.num_classes), None
    else:
        model, report = load_checkpoint(options.source, make_model, options.num_classes)
    _save(model, options.destination, options.huggingface)
    return report


def _build(config: str, num_classes: int | None) -> Any:
    overrides = ["model.weights=", "model.backbone.weights="]
    if num_classes is not None:
        overrides.append(f"model.num_classes={num_classes}")
    return build_model(load_config(config, overrides).model)


def _save(model: Any, destination: Path, huggingface: bool) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if huggingface:
        export_to_huggingface(model, destination)
    elif destination.name.endswith(KERAS_SUFFIXES):
        with written_whole(destination) as path:
            write_model(model, path)
    else:
        save_to_preset(model, destination)
