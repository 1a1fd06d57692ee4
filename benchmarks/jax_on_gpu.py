"""Inference and train step on the JAX backend beside Hugging Face's model on PyTorch, eager and compiled.

`KERAS_BACKEND=jax python benchmarks/jax_on_gpu.py --reference-python /path/to/torch/bin/python` on one GPU; without one
it runs on the CPU and says so. Prints images a second, our speed over theirs, and the part of the chip's measured
matrix rate that the model's products reach (2 operations a multiplication, 3 forward passes a train step).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "scripts")]

from benchmarks.machine import median_seconds  # noqa: E402
from benchmarks.model import Side, measure  # noqa: E402

SIDE = 8192
# Multiplications of a forward pass at 512x512, in 1e9, as published for the models (head and decoder included).
MULTIPLICATIONS = {"resnet50": 53e9, "swin_tiny": 55e9, "swin_base": 195e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="Python with torch and transformers; without it, only ours")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "swin_base"])
    parser.add_argument("--sizes", nargs="+", default=["512x512", "800x1216"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=["inference", "train"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rates = {precision: matrix_rate(precision) for precision in options.precisions}
    for kind in options.kinds:
        for backbone in options.backbones:
            for size in options.sizes:
                for precision in options.precisions:
                    workload = {"kind": kind, "backbone": backbone, "precision": precision, "batch": options.batch}
                    workload |= {"size": [int(side) for side in size.split("x")], "deep_supervision": True, "xla": True}
                    report(workload, options, rates[precision])


def matrix_rate(precision: str) -> float:
    """Operations a second of a large matrix product in JAX; prints the device."""
    import jax

    device = jax.devices()[0]
    side = SIDE if device.platform == "gpu" else SIDE // 8
    matrix = jax.numpy.ones((side, side), "bfloat16" if precision == "mixed_bfloat16" else "float32")
    product = jax.jit(lambda x: x @ x)
    rate = 2 * side**3 / median_seconds(lambda: product(matrix).block_until_ready())
    note = "" if device.platform == "gpu" else " NOT A GPU: these figures say nothing about one."
    print(f"{device.device_kind}: {precision} matrix product {rate / 1e12:.2f} TFLOP/s.{note}", flush=True)
    return rate


def report(workload: dict, options: argparse.Namespace, rate: float) -> None:
    """One line: ours, theirs eager, theirs compiled."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": Side(sys.executable, "jax")}
        sides["ours"].ask("prepare", **workload, folder=folder if options.reference_python else "")
        for name in ("eager", "compiled") if options.reference_python else ():
            sides[name] = Side(options.reference_python, "reference")
            precision = workload["precision"]
            sides[name].ask(
                "prepare", **workload, folder=folder, reference_precision=precision, compiled=name == "compiled"
            )
        pairs = measure(list(sides.values()), options.repeats)
        for side in sides.values():
            side.close()
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    speeds = [f"{name} {workload['batch'] / seconds:8.2f}" for name, seconds in zip(sides, medians, strict=True)]
    ratios = [f"{statistics.median(row[i] / row[0] for row in pairs):5.2f}" for i in range(1, len(sides))]
    height, width = workload["size"]
    passes = 3 if workload["kind"] == "train" else 1
    scale = height * width / 512**2
    work = 2 * MULTIPLICATIONS[workload["backbone"]] * scale * workload["batch"] * passes
    name = (
        f"{workload['kind']} {workload['backbone']} {height}x{width} batch {workload['batch']} {workload['precision']}"
    )
    print(
        f"{name:56} images/s: {', '.join(speeds)}; ours over theirs {', '.join(ratios) or '-'}; "
        f"{100 * work / medians[0] / rate:.0f} % of the matrix rate",
        flush=True,
    )


if __name__ == "__main__":
    main()
