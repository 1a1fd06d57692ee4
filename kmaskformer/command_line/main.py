"""The console command `kmaskformer`: one subcommand per module of this folder."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kmaskformer.version import __version__

COMMANDS = {
    "inspect": "look at a dataset before training",
    "train": "train a model as a configuration says, and evaluate it",
    "evaluate": "score trained weights on a validation set",
    "predict": "segment images, folders of images and videos",
    "export": "write a SavedModel, an ONNX or a LiteRT file",
    "convert": "convert a published checkpoint, without PyTorch",
    "serve": "serve exports over HTTP, with a page to try them",
}

DESCRIPTION = "Semantic, instance and panoptic segmentation by mask classification."

EXAMPLES = """\
from data to a service:
  kmaskformer inspect --config configs/shapes/panoptic/maskformer_resnet18.yaml
  kmaskformer train --config configs/shapes/panoptic/maskformer_resnet18.yaml --output runs/shapes
  kmaskformer evaluate --config runs/shapes/config.yaml --weights runs/shapes
  kmaskformer predict --weights runs/shapes --input photos/ --output out --task panoptic
  kmaskformer export --weights runs/shapes --output out/saved_model --task panoptic
  kmaskformer serve --model out/saved_model          # then open http://127.0.0.1:8501

`kmaskformer COMMAND --help` explains a command and its options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: The words after `kmaskformer`; those of the process if None.

    Returns:
        The exit status.

    Raises:
        SystemExit: With a message where the user's input is wrong, and after `--help` and `--version`.
    """
    listed = "\n".join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="kmaskformer",
        usage="kmaskformer COMMAND [OPTIONS]",
        description=f"{DESCRIPTION}\n\ncommands:\n{listed}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kmaskformer {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words[:1] or ["--help"])
    # Only now: converters and web frameworks take seconds to import, and not everyone has them.
    return importlib.import_module(f"kmaskformer.command_line.{options.command}").main(words[1:])
