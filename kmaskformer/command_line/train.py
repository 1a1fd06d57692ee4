"""`kmaskformer train`, `scripts/train.py`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from kmaskformer import experiment, trained_run
from kmaskformer.command_line.command import add_overrides, make_parser, one_line_errors
from kmaskformer.config import load_config
from kmaskformer.training.distribution import STRATEGIES
from kmaskformer.training.interruption import TrainingInterrupted
from kmaskformer.training.nonfinite import ON_NAN, NonFiniteLossError

DESCRIPTION = """\
Train a model and evaluate it. The configuration names model, data and schedule; README.md shows how to write one for
your own images. The folder of the run holds model.keras, metrics.json, pictures, TensorBoard logs and checkpoints."""

EXAMPLES = """\
  kmaskformer train --config fields.yaml --output runs/fields
  kmaskformer train --config fields.yaml --output runs/fields --resume         # go on after a stop
  kmaskformer train --config fields.yaml --output runs/b4 --set data.batch_size=4 training.steps=5000
  kmaskformer train --config fields.yaml --output runs/fields --strategy mirrored    # all GPUs of this machine"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and train; the exit status after SIGTERM, when a checkpoint was saved, is 143."""
    parser = make_parser("train", DESCRIPTION, EXAMPLES)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    add_overrides(parser)
    parser.add_argument("--output", required=True, help="folder of the run; created")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--strategy", default="none", choices=STRATEGIES, help="devices to train on")
    parser.add_argument("--on-nan", choices=ON_NAN, default=ON_NAN[0], help="what to do about a non-finite loss")
    options = parser.parse_args(arguments)
    try:
        with one_line_errors(RuntimeError, NonFiniteLossError):
            config = load_config(options.config, options.set)
            how = {"resume": options.resume, "strategy": options.strategy, "on_nan": options.on_nan}
            scores = experiment.train(config, options.output, **how)
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr, flush=True)
        return 128 + signal.SIGTERM
    print(f"Scores: {', '.join(f'{name} {value:.4f}' for name, value in scores.items() if value is not None)}")
    print(f"Model: {options.output}/{trained_run.MODEL_FILE}")
    print(f"Pictures: {options.output}/pictures")
    return 0
