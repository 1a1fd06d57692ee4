"""`kmaskformer evaluate`, `scripts/evaluate.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kmaskformer import experiment
from kmaskformer.command_line.command import add_overrides, make_parser, one_line_errors
from kmaskformer.command_line.weights import WEIGHTS_HELP, model_or_run
from kmaskformer.config import load_config
from kmaskformer.evaluation.score_tables import format_classes, format_scores

DESCRIPTION = """\
Evaluate a model on the validation split of a configuration, with its metrics, sizes and thresholds, and print the
scores. The exit status is 1 if images had to be left out."""

EXAMPLES = """\
  kmaskformer evaluate --config runs/fields/config.yaml --weights runs/fields --output runs/fields/scores
  kmaskformer evaluate --config fields.yaml --weights fields.weights.h5 --predictions out    # COCO JSON, label PNGs
  kmaskformer evaluate --config configs/ade20k/semantic/maskformer_swin_tiny.yaml \\
      --weights maskformer_swin_tiny_ade20k150 --set data.root=ADEChallengeData2016    # a published model
  kmaskformer evaluate --config fields.yaml --weights runs/fields --set evaluation.metrics=[semantic,panoptic]"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, evaluate, print and write the scores; the exit status is 1 if images were left out."""
    parser = make_parser("evaluate", DESCRIPTION, EXAMPLES)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    add_overrides(parser)
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--output", help="folder for scores, tables, charts and pictures")
    parser.add_argument(
        "--predictions", metavar="DIR", help="write the predictions there in the files of the official tools"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what has been counted in OUTPUT/state.npz and go on from it"
    )
    options = parser.parse_args(arguments)
    if options.resume and not options.output:
        parser.error("--resume needs --output, the folder of the interrupted evaluation")
    with one_line_errors():
        return _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.set)
    state_file = Path(options.output) / "state.npz" if options.resume else None
    weights = model_or_run(options.weights)
    _, scores = experiment.evaluate(config, weights, options.predictions, state_file, options.output)
    print(format_classes(scores), format_scores(scores), sep="\n\n")
    if options.predictions:
        print(f"Predictions: {options.predictions}")
    if options.output:
        print(f"Scores, tables and pictures: {options.output}")
    failed = int(scores["evaluation/failed_images"])
    if failed:
        print(f"error: {failed} images or batches were left out of the scores; see the warnings above", file=sys.stderr)
    return 1 if failed else 0
