"""`benchmark.py serving`: exports and the server, each beside what it stands on.

    python scripts/benchmark.py serving --weights runs/fields
    python scripts/benchmark.py serving --parts latency --reference-python ~/torch/bin/python    # PyTorch beside it

- latency: a SavedModel beside the compiled forward pass of the same model in this process, and onnxruntime and PyTorch
  beside the SavedModel;
- cold-start: from the start of `kmaskformer serve` to its first answer, beside TensorFlow's own start and load;
- throughput: images a second, and how long answers take, under 1, 4 and 16 clients.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import cold_start, latency, throughput
from kmaskformer import trained_run
from kmaskformer.build import build_model
from kmaskformer.config import ModelConfig, load_config
from kmaskformer.export.saved_model import export_saved_model
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.structures import TASKS, DatasetInfo

PARTS = {"latency": latency.measure, "cold-start": cold_start.measure, "throughput": throughput.measure}
NUM_CLASSES = 133


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `serving` to the command line."""
    parser = commands.add_parser(
        "serving",
        help="exports and the server: latency, cold start, throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--weights", help="a run's folder or model file; by default random weights")
    parser.add_argument("--config", help="configuration of the random model; by default ResNet-50, 133 classes")
    parser.add_argument("--task", default="panoptic", choices=TASKS)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=15, help="rounds in which the compared take turns")
    parser.add_argument("--seconds", type=float, default=20, help="of load for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--onnx", action=argparse.BooleanOptionalAction, default=True, help="time onnxruntime too")
    parser.add_argument("--reference-python", help="a Python with torch and transformers, to time PyTorch beside")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the measurements."""
    model = trained_run.load_model(options.weights) if options.weights else random_model(options.config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_saved_model(model, Path(temporary) / "model", task=options.task, config={})
        print(f"{model.count_params():,} parameters, images {options.size[0]} x {options.size[1]}, {options.task}")
        for part in options.parts:
            PARTS[part](model, folder, options)


def random_model(config: str | None) -> SegmentationModel:
    """A model with untrained weights: as fast as a trained one but for post-processing, which finds little."""
    model_config = load_config(config).model if config else ModelConfig(num_classes=NUM_CLASSES)
    info = {**DatasetInfo.numbered(model_config.num_classes).to_dict(), "thing_ids": [0]}
    return build_model(model_config, DatasetInfo.from_dict(info))
