"""Train a model: `python scripts/train.py --config C --output runs/x`."""

from __future__ import annotations

import argparse
import signal
import sys

from kmaskformer import experiment
from kmaskformer.config import load_config
from kmaskformer.training.interruption import TrainingInterrupted
from kmaskformer.training.nonfinite import ON_NAN, NonFiniteLossError


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description="Train a model and evaluate it.")
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="A.B=V", help="override a field")
    parser.add_argument("--output", required=True, help="folder of the run; created")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--strategy", default="none", help="none, mirrored, multi_worker or tpu")
    parser.add_argument("--on-nan", choices=ON_NAN, default=ON_NAN[0], help="what to do about a non-finite loss")
    arguments = parser.parse_args()
    options = {"resume": arguments.resume, "strategy": arguments.strategy, "on_nan": arguments.on_nan}
    try:
        scores = experiment.train(load_config(arguments.config, arguments.set), arguments.output, **options)
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)
    except (ValueError, OSError, RuntimeError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
    print(f"Scores: {', '.join(f'{name} {value:.4f}' for name, value in scores.items() if value is not None)}")
    print(f"Model: {arguments.output}/{experiment.MODEL_FILE}")
    print(f"Pictures: {arguments.output}/pictures")


if __name__ == "__main__":
    main()
