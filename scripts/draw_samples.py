"""Write images of a dataset as files: `python scripts/draw_samples.py --config C --split val --output DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kmaskformer import build_data
from kmaskformer.command_line.command import add_overrides, one_line_errors
from kmaskformer.config import load_config


def main() -> None:
    """Parse the arguments and write the first images of a split as PNG."""
    parser = argparse.ArgumentParser(description="Write the first images of a dataset as PNG files.")
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    add_overrides(parser)
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--output", required=True, help="folder; created")
    arguments = parser.parse_args()
    with one_line_errors():
        _draw(arguments)


def _draw(arguments: argparse.Namespace) -> None:
    reader = build_data.build_reader(load_config(arguments.config, arguments.set).data, arguments.split)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    for index in range(min(arguments.count, len(reader))):
        Image.fromarray(reader[index]["image"]).save(output / f"image_{index}.png")


if __name__ == "__main__":
    main()
