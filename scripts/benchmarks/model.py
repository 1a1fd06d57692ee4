"""`benchmark.py train|inference|scaling`: time and peak memory of the model, beside Hugging Face's on PyTorch.

Both sides are processes of their own that take turns step by step, with the same weights and images: a busy machine
slows both. Printed are medians and the median of the pairs' ratios, ours over theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import copy_rate, matrix_rate
from kmaskformer.command_line.command import one_line_errors
from kmaskformer.extras import require_extra

SIDE_SCRIPT = Path(__file__).with_name("side.py")
SIZES = ("512x512", "800x1216")
AXES = {
    "pixels": {"size": [[256, 256], [384, 384], [512, 512], [768, 768]]},
    "queries": {"queries": [50, 100, 200, 400]},
    "masks": {"masks": [4, 8, 16, 32]},
    "batch": {"batch": [1, 2, 4]},
}


class Side:
    """A process that measures one side."""

    def __init__(self, python: str, name: str) -> None:
        command = [python, str(SIDE_SCRIPT), name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: the process {self._process.args} ended; its messages stand above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def add_command(commands: argparse._SubParsersAction) -> None:
    for kind in ("train", "inference"):
        parser = commands.add_parser(kind, help=f"{kind} against Hugging Face's model on PyTorch")
        _add_options(parser)
        parser.add_argument("--reference-python", help="Python with torch and transformers; without it, only ours")
        parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HxW")
        parser.add_argument("--batches", nargs="+", type=int, default=[2] if kind == "train" else [1, 8])
        parser.add_argument("--precisions", nargs="+", default=["float32", "mixed_bfloat16"])
        parser.set_defaults(run=compare, kind=kind)
    parser = commands.add_parser("scaling", help="how time and memory of a train step grow")
    _add_options(parser)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--output", help="PNG of the curves")
    parser.set_defaults(run=scaling)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "swin_tiny"])
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--deep-supervision", action="store_true", help="with the losses of all decoder layers")
    parser.add_argument("--xla", action="store_true", help="compile our side with XLA")


def compare(options: argparse.Namespace) -> None:
    """One line for each backbone, size, batch and precision; the reference is float32 always."""
    print(f"machine: float32 {matrix_rate() / 1e9:.0f} GFLOP/s, bfloat16 {matrix_rate('bfloat16') / 1e9:.0f} GFLOP/s,")
    print(f"copy {copy_rate() / 1e9:.1f} GB/s (read and written); peak memory is above that of the loaded model")
    for workload in _workloads(options):
        name = f"{workload['backbone']} {'x'.join(map(str, workload['size']))} batch {workload['batch']}"
        print(f"{name:32} {workload['precision']:14} {_line(workload, options)}", flush=True)


def _workloads(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for backbone in options.backbones:
        for size in options.sizes:
            for batch in options.batches:
                for precision in options.precisions:
                    yield {
                        "kind": options.kind,
                        "backbone": backbone,
                        "size": [int(side) for side in size.split("x")],
                        "batch": batch,
                        "precision": precision,
                        "deep_supervision": options.deep_supervision,
                        "xla": options.xla,
                    }


def _line(workload: dict[str, Any], options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(sys.executable, "ours")]
        sides[0].ask("prepare", **workload, folder=folder if options.reference_python else "")
        if options.reference_python:
            sides.append(Side(options.reference_python, "reference"))
            sides[1].ask("prepare", **workload, folder=folder)
        pairs = measure(sides, options.repeats)
        memory = [side.ask("memory")["bytes"] / 2**20 for side in sides]
        for side in sides:
            side.close()
    ours = statistics.median(pair[0] for pair in pairs)
    if len(sides) == 1:
        return f"here {ours:7.3f} s, {memory[0]:5.0f} MiB"
    theirs = statistics.median(pair[1] for pair in pairs)
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    return (
        f"here {ours:7.3f} s, there {theirs:7.3f} s, ratio {ratio:5.2f};   "
        f"memory {memory[0]:5.0f} and {memory[1]:5.0f} MiB, ratio {memory[0] / memory[1]:5.2f}"
    )


def measure(sides: list[Side], repeats: int) -> list[list[float]]:
    """Seconds of one step of each side, taking turns; the first two rounds go uncounted."""
    rounds = [[side.ask("run")["seconds"] for side in sides] for _ in range(repeats + 2)]
    return rounds[2:]


def scaling(options: argparse.Namespace) -> None:
    """Fits `cost ~ x ** exponent` along each axis, for the time and the peak memory of a train step."""
    if options.output:
        with one_line_errors():
            require_extra("plots", "matplotlib", "--output")
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    curves = {}
    for backbone in options.backbones:
        for axis in options.axes:
            ((field, values),) = AXES[axis].items()
            points = [_cost(backbone, {field: value}, options) for value in values]
            x = np.array([np.prod(value) for value in values], float)
            curves[f"{backbone}, {axis}"] = x, np.array(points)
            exponents = [np.polyfit(np.log(x), np.log(column), 1)[0] for column in np.array(points).T]
            costs = ", ".join(f"{seconds:.2f} s {mebibytes:.0f} MiB" for seconds, mebibytes in points)
            print(f"{backbone:10} {axis:8} time ~ x^{exponents[0]:.2f}, memory ~ x^{exponents[1]:.2f}   ({costs})")
    if options.output:
        draw(curves, Path(options.output))


def _cost(backbone: str, changed: dict[str, Any], options: argparse.Namespace) -> tuple[float, float]:
    workload = {"kind": "train", "backbone": backbone, "size": [384, 384], "batch": 1, "precision": "float32"}
    workload |= {"deep_supervision": options.deep_supervision, "xla": options.xla, **changed}
    side = Side(sys.executable, "ours")
    side.ask("prepare", **workload)
    seconds = statistics.median(row[0] for row in measure([side], options.repeats))
    mebibytes = side.ask("memory")["bytes"] / 2**20
    side.close()
    return seconds, mebibytes


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Both costs of all curves over the first value of their axis, on logarithmic scales."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for name, (x, points) in curves.items():
        for axis, column, label in zip(axes, points.T, ("seconds a step", "MiB above the loaded model"), strict=True):
            slope = np.polyfit(np.log(x), np.log(column), 1)[0]
            axis.loglog(x / x[0], column, marker="o", label=f"{name}: x^{slope:.2f}")
            axis.set(xlabel="times the smallest", ylabel=label)
    for axis in axes:
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
