"""`kmaskformer inspect`, `scripts/inspect_dataset.py`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmaskformer import build_data, data
from kmaskformer.command_line.command import USER_ERRORS, add_overrides, make_parser, one_line_errors
from kmaskformer.config import Config, load_config
from kmaskformer.data.inspection import Finding, SplitFacts, find_problems, read_facts
from kmaskformer.data.label_spaces import IGNORE_VALUES, label_space
from kmaskformer.dataset_report import draw_contact_sheet, write_report

DESCRIPTION = """\
Look at a dataset before training. Reads every sample; prints counts, what is wrong and what to do about it; writes
report.html and a contact sheet for each split. Exit status 1: training cannot start."""

EXAMPLES = """\
  kmaskformer inspect --config fields.yaml --output runs/fields/data
  kmaskformer inspect --images 'images/*.jpg' --masks 'masks/{stem}.png' --classes soil,crop,weed"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, inspect, print and write; returns the exit status."""
    parser = make_parser("inspect", DESCRIPTION, EXAMPLES)
    parser.add_argument("--config", help="YAML file of the experiment; its splits are inspected")
    add_overrides(parser)
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=("train", "val"))
    parser.add_argument("--images", help="folder or pattern, instead of --config")
    parser.add_argument("--masks", help="folder or pattern with {stem}")
    parser.add_argument("--classes", help="names with commas between, a JSON or CSV file, or a published label space")
    parser.add_argument("--instances", action="store_true", help="masks hold ids of instances")
    parser.add_argument("--background", help="with --instances: class of the pixels outside")
    parser.add_argument(
        "--queries", type=int, default=0, help="queries of the model; with --config, those of its model"
    )
    parser.add_argument("--output", help="folder for report.html and contact sheets; created")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args(arguments)
    if bool(options.config) == bool(options.images):
        parser.error("give --config, or --images with --masks and --classes")
    if options.images and not (options.masks and options.classes):
        parser.error("--images needs --masks and --classes")
    try:
        config, readers = open_splits(options)
    except USER_ERRORS as error:
        print(f"error: {error}\nTraining cannot start.")
        return 1
    facts = [read_facts(reader, name, options.workers, sys.stderr.isatty()) for name, reader in readers.items()]
    findings = find_problems(facts, **expectations(config, options.queries))
    for split in facts:
        print_split(split)
    for finding in findings:
        print(finding)
    if options.output:
        with one_line_errors():
            write_files(Path(options.output), facts, findings, readers)
    errors = sum(finding.is_error for finding in findings)
    print(f"Training cannot start: {errors} error(s)." if errors else "Training can start.")
    return 1 if errors else 0


def open_splits(options: argparse.Namespace) -> tuple[Config | None, dict[str, Any]]:
    if options.config:
        # Images without labels are to be listed, all of them, and not to stop the inspection; sizes are the files' own.
        config = load_config(options.config, [*options.set, "data.on_error=skip", "data.reduced_decoding=false"])
        return config, {split: build_data.build_reader(config.data, split) for split in options.splits}
    reader = data.from_folders(
        options.images,
        options.masks,
        parse_classes(options.classes),
        instances=options.instances,
        background=options.background,
        on_error="skip",
    )
    return None, {"images": reader}


def parse_classes(text: str) -> str | list[str]:
    """What `--classes` says: a class table or a label space by its name, or the names of the classes.

    Raises:
        ValueError: If it is the name of a label space but for a slip: as a class it would make all labels wrong.
    """
    if Path(text).is_file() or text.lower().endswith((".json", ".csv")) or text in IGNORE_VALUES:
        return text
    if difflib.get_close_matches(text, IGNORE_VALUES, n=1, cutoff=0.8):
        label_space(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def expectations(config: Config | None, num_queries: int) -> dict[str, Any]:
    """What the model expects of the data."""
    if config is None:
        return {"num_queries": num_queries}
    has_queries = config.model.name == "maskformer"
    return {
        "num_queries": num_queries or (config.model.transformer_decoder.num_queries if has_queries else 0),
        "num_classes": config.model.num_classes,
        "least_size": tuple(config.data.augmentation.crop) or (0, 0),
    }


def print_split(split: SplitFacts) -> None:
    segments = split.num_segments or [0]
    print(
        f"{split.name}: {len(split.readable)} of {len(split.samples)} images can be used, {sum(segments)} segments, "
        f"{min(segments)} to {max(segments)} an image"
    )
    total = max(int(split.class_pixels.sum()), 1)
    for index, name in enumerate(split.info.class_names):
        if split.class_images[index]:
            print(
                f"  {name}: {split.class_images[index]} images, {split.class_segments[index]} segments, "
                f"{split.class_pixels[index] / total:.2%} of the labelled pixels, median area "
                f"{split.class_areas[index]:.0f}"
            )


def write_files(output: Path, facts: list[SplitFacts], findings: list[Finding], readers: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    sheets = {split.name: draw_contact_sheet(readers[split.name], split) for split in facts if split.readable}
    for name, sheet in sheets.items():
        sheet.save(output / f"{name}.png")
    write_report(output / "report.html", facts, findings, sheets)
    print(f"Report: {output / 'report.html'}")
