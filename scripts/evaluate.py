"""Score trained weights: `python scripts/evaluate.py --config C --weights runs/x/model.keras --output scores`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kmaskformer import experiment
from kmaskformer.config import load_config
from kmaskformer.evaluation.files import format_scores
from kmaskformer.evaluation.score_tables import format_classes


def main() -> None:
    """Parse the arguments, evaluate, print and write the scores; the exit status is 1 if images were left out."""
    parser = argparse.ArgumentParser(description="Evaluate a model on the validation split of a configuration.")
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="A.B=V", help="override a field")
    parser.add_argument("--weights", required=True, help=".keras or .weights.h5 file, or a run's folder")
    parser.add_argument("--output", help="folder for scores, tables, charts and pictures")
    parser.add_argument(
        "--predictions", metavar="DIR", help="write the predictions there in the files of the official tools"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what has been counted in OUTPUT/state.npz and go on from it"
    )
    arguments = parser.parse_args()
    if arguments.resume and not arguments.output:
        parser.error("--resume needs --output, the folder of the interrupted evaluation")
    try:
        sys.exit(_evaluate(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _evaluate(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    state_file = Path(arguments.output) / "state.npz" if arguments.resume else None
    _, scores = experiment.evaluate(config, arguments.weights, arguments.predictions, state_file, arguments.output)
    print(format_classes(scores), format_scores(scores), sep="\n\n")
    if arguments.predictions:
        print(f"Predictions: {arguments.predictions}")
    if arguments.output:
        print(f"Scores, tables and pictures: {arguments.output}")
    failed = int(scores["evaluation/failed_images"])
    if failed:
        print(f"error: {failed} images or batches were left out of the scores; see the warnings above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
