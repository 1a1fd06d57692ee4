"""Scores prediction files against truth files; needs no model.

    python scripts/evaluate_files.py panoptic --truth panoptic_val2017.json --predictions predictions.json \
        --truth-folder panoptic_val2017 --predictions-folder predictions --output metrics.json
    python scripts/evaluate_files.py instance --truth instances_val2017.json --predictions results.json
    python scripts/evaluate_files.py semantic --truth labels/ --predictions predicted/ --classes 150
    python scripts/evaluate_files.py semantic --truth annotations/validation --predictions out/labels \
        --label-space ade20k_150
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence

from kmaskformer.command_line.command import one_line_errors
from kmaskformer.data.label_spaces import IGNORE_VALUES
from kmaskformer.data.sources import class_record
from kmaskformer.evaluation import score_files
from kmaskformer.evaluation.score_tables import format_scores, summarize, write_metrics
from kmaskformer.whole_files import check_can_write


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("panoptic", "instance", "semantic"))
    parser.add_argument("--truth", required=True, help="JSON, or for semantic a folder of label PNGs")
    parser.add_argument("--predictions", required=True, help="the same kind of file or folder")
    parser.add_argument("--truth-folder", help="panoptic PNGs; by default the JSON's path without .json")
    parser.add_argument("--predictions-folder", help="panoptic PNGs; by default the JSON's path without .json")
    parser.add_argument("--classes", type=int, help="number of classes in label PNGs that hold 0..K-1")
    parser.add_argument(
        "--label-space",
        metavar="NAME|FILE",
        help="label PNGs hold the dataset's own ids, as predict.py writes them: a published label space "
        f"({', '.join(IGNORE_VALUES)}), or a JSON or CSV file with the classes and their ids",
    )
    parser.add_argument("--ignore", type=int, help="unlabelled value in label PNGs (255; 65535 above 255 classes)")
    parser.add_argument("--void-to-class", type=int, help="count predictions outside 0..K-1 as this class")
    parser.add_argument("--output", help="write the scores, per class too, to this .json or .csv")
    options = parser.parse_args(arguments)
    if options.task == "semantic" and not options.truth.endswith(".json"):
        if options.classes is None and options.label_space is None:
            parser.error("label PNGs do not tell how many classes there are; add --classes N or --label-space NAME")
        if options.classes is not None and options.label_space is not None:
            parser.error("--label-space says how many classes there are; leave --classes out")
    if options.output and not options.output.endswith((".json", ".csv")):
        parser.error(f"--output must end in .json or .csv: {options.output}")
    _warn_of_unused(options)
    return options


def _warn_of_unused(options: argparse.Namespace) -> None:
    """Says which options the task does not read: their user may believe that the scores depend on them."""
    used = {"instance": (), "panoptic": ("truth_folder", "predictions_folder")}.get(options.task)
    if used is None:
        from_panoptic = options.truth.endswith(".json")
        used = ("truth_folder", "predictions_folder") if from_panoptic else ("classes", "ignore", "label_space")
        used = (*used, "void_to_class")
    for name in ("truth_folder", "predictions_folder", "classes", "ignore", "label_space", "void_to_class"):
        if getattr(options, name) is not None and name not in used:
            print(f"warning: --{name.replace('_', '-')} has no effect on {options.task} scores here", file=sys.stderr)


def score(options: argparse.Namespace) -> dict[str, float]:
    if options.task == "instance":
        return score_files.score_instance_files(options.truth, options.predictions)
    files = (options.truth, options.predictions)
    folders = (options.truth_folder, options.predictions_folder)
    if options.task == "panoptic":
        return score_files.score_panoptic_files(*files, *folders)
    if options.truth.endswith(".json"):
        return score_files.score_semantic_from_panoptic(*files, *folders, void_to_class=options.void_to_class)
    if options.label_space is not None:
        info = class_record(options.label_space, ignore_value=options.ignore)
        return score_files.score_label_folders(*files, info, void_to_class=options.void_to_class)
    ignore = options.ignore if options.ignore is not None else 255 if options.classes <= 255 else 65535
    return score_files.score_semantic_folders(
        *files, num_classes=options.classes, ignore_value=ignore, void_to_class=options.void_to_class
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with warnings.catch_warnings(), one_line_errors():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        if options.output:
            check_can_write(options.output)
        scores = score(options)
    if all(math.isnan(value) for value in summarize(scores).values()):
        print("warning: every score is undefined: the truth has nothing to find, or no labelled pixel", file=sys.stderr)
    print(format_scores(scores))
    if options.output:
        print(f"written: {write_metrics(scores, options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
