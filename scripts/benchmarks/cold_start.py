"""From the start of the server's process to its first answer, beside TensorFlow's own import and load."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.server_process import ask, jpeg, serve

BASELINE = """
import sys
import tensorflow as tf
tf.saved_model.load(sys.argv[1])
"""

BASELINE_WITH_ANSWER = (
    BASELINE.replace("tf.saved", "loaded = tf.saved")
    + """
images = tf.zeros((1, int(sys.argv[2]), int(sys.argv[3]), 3), tf.uint8)
loaded.signatures["serving_default"](images=images)["%s"].numpy()
"""
)
OUTPUTS = {"semantic": "class_map", "panoptic": "panoptic_map", "instance": "masks"}


def measure(model: Any, folder: Path, options: argparse.Namespace) -> None:
    """Prints seconds, by the clock and of all processors, and the ratios of both; the three take turns.

    Where other programs use the processors, only the second ratio means something.
    """
    picture = jpeg(*options.size)
    answering = BASELINE_WITH_ANSWER % OUTPUTS[options.task]
    runs = {
        "TensorFlow: import and load": lambda: _python(BASELINE, folder, options),
        "the same, and an answer": lambda: _python(answering, folder, options),
        "server: to its first answer": lambda: _answer_once(folder, picture),
    }
    # The first round brings the files into memory.
    rounds = [[_cost(run) for run in runs.values()] for _ in range(max(2, options.repeats // 5) + 1)][1:]
    for name, record in zip(runs, zip(*rounds, strict=True), strict=True):
        clock, processor = (statistics.median(column) for column in zip(*record, strict=True))
        print(f"{name:28} {clock:9.2f} s   {processor:9.2f} s of processors")
    for column, name in enumerate(list(runs)[:2]):
        clock, processor = (statistics.median(turn[2][i] / turn[column][i] for turn in rounds) for i in (0, 1))
        print(f"cold start / {name}: {clock:.3f}   of processors: {processor:.3f}", flush=True)


def _cost(run: Callable[[], float]) -> tuple[float, float]:
    """Seconds by the clock, as `run` says, and of the processors in the process that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _python(script: str, folder: Path, options: argparse.Namespace) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(folder), *map(str, options.size)], check=True)
    return time.perf_counter() - start


def _answer_once(folder: Path, picture: bytes) -> float:
    start = time.perf_counter()
    with serve(folder) as port, contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        if ask(connection, picture) != 200:
            raise RuntimeError("the server did not answer; its messages are above")
        return time.perf_counter() - start
