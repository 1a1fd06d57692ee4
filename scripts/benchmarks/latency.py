"""A SavedModel beside the compiled forward pass, and other runtimes beside the SavedModel."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskformer.export.onnx import export_onnx

CHILD = Path(__file__).with_name("torch_forward.py")


def measure(model: Any, folder: Path, options: argparse.Namespace) -> None:
    """Prints milliseconds of each and their ratios.

    All take turns in every round; a ratio is the median of the rounds' ratios, which a busy machine moves least.
    """
    images = np.random.default_rng(0).integers(0, 256, (1, *options.size, 3), dtype=np.uint8)
    loaded = tf.saved_model.load(str(folder))
    forward = tf.function(lambda images: _logits(model(images, training=False)), autograph=False)
    raw, serve = loaded.signatures["raw"], loaded.signatures["serving_default"]
    tensor = tf.constant(images)
    runs: dict[str, Callable[[], Any]] = {
        "compiled forward": lambda: forward(tensor),
        "SavedModel, raw": lambda: raw(images=tensor),
        "SavedModel, whole": lambda: serve(images=tensor),
    }
    with contextlib.ExitStack() as stack:
        if options.onnx:
            runs["onnxruntime, raw"] = _onnx(model, folder.parent / "model.onnx", images)
        if options.reference_python:
            runs["PyTorch, raw"] = stack.enter_context(_torch(options, model))
        times = _take_turns(runs, options.repeats)
    for name, record in times.items():
        print(f"{name:28} {1000 * statistics.median(record):9.1f} ms")
    _print_ratio(times, "SavedModel, raw", "compiled forward")
    for other in ("onnxruntime, raw", "PyTorch, raw"):
        if other in times:
            _print_ratio(times, other, "SavedModel, raw")


def _take_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each in each round; two rounds before are not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            seconds = run()
            if turn >= 2:
                times[name].append(seconds if isinstance(seconds, float) else time.perf_counter() - start)
    return times


def _print_ratio(times: dict[str, list[float]], upper: str, lower: str) -> None:
    ratios = [one / other for one, other in zip(times[upper], times[lower], strict=True)]
    print(f"{upper} / {lower}: {statistics.median(ratios):.3f}", flush=True)


def _logits(outputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in outputs.items() if key != "aux_outputs"}


def _onnx(model: Any, path: Path, images: np.ndarray) -> Callable[[], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(export_onnx(model, path, "raw")), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


@contextlib.contextmanager
def _torch(options: argparse.Namespace, model: Any) -> Iterator[Callable[[], float]]:
    """A forward pass of the same architecture in transformers, in a process that waits for its turn."""
    kind = "swin" if "Swin" in type(model.backbone).__name__ else "resnet"
    setting = {"backbone": kind, "size": list(options.size), "num_classes": model.num_classes}
    command = [options.reference_python, str(CHILD), json.dumps(setting)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:

        def run() -> float:
            child.stdin.write("run\n")
            child.stdin.flush()
            return float(child.stdout.readline())

        yield run
        child.stdin.close()
