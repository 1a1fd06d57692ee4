"""Peak memory of evaluating large images, each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

QUERIES = 100


class Case(NamedTuple):
    """What is evaluated: `per_pixel` models have logits in the place of masks."""

    evaluator: str
    num_classes: int
    height: int
    width: int
    per_pixel: bool = False


CASES = (
    Case("semantic", 19, 1024, 2048),
    Case("panoptic", 133, 2048, 2048),
    Case("semantic", 847, 1024, 1536, per_pixel=True),
    Case("semantic", 847, 1024, 1536),
    Case("semantic", 847, 2048, 2048),
)


def report_memory() -> None:
    """Prints what each case adds to the peak, beside the size of the scores of all classes, or of all masks."""
    for case in CASES:
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(case)], capture_output=True, text=True, check=True
        ).stdout
        peak, seconds = json.loads(done.splitlines()[-1])
        maps = case.num_classes if case.evaluator == "semantic" else QUERIES
        kind = "per-pixel, " if case.per_pixel else ""
        name = f"{case.evaluator}, {kind}{case.num_classes} classes, {case.height} x {case.width}"
        whole = 4 * maps * case.height * case.width / 2**30
        print(f"{name:48} peak {peak:6.2f} GiB   all maps at once {whole:6.2f} GiB   {seconds:6.1f} s", flush=True)


def measure(case: Case) -> tuple[float, float]:
    """GiB that predicting one image adds to the process, and seconds."""
    import tensorflow as tf

    from kmaskformer.evaluation.evaluator import ImageOutputs, PanopticEvaluator, SemanticEvaluator
    from kmaskformer.structures import DatasetInfo

    evaluator = SemanticEvaluator() if case.evaluator == "semantic" else PanopticEvaluator()
    evaluator.bind(DatasetInfo.numbered(case.num_classes))
    predict = tf.function(lambda outputs, *sizes: evaluator.predict(ImageOutputs(outputs, *sizes)), autograph=False)
    size = (case.height, case.width)
    outputs = {key: tf.constant(value) for key, value in random_outputs(case).items()}
    before = peak_gigabytes()
    start = time.perf_counter()
    predict(outputs, *(tf.constant(size) for _ in range(3)))
    return peak_gigabytes() - before, time.perf_counter() - start


def random_outputs(case: Case) -> dict[str, np.ndarray]:
    """Model outputs for one image; a fifth of the queries is certain of its class."""
    rng = np.random.default_rng(0)
    quarter = (-(-case.height // 4), -(-case.width // 4))
    if case.per_pixel:
        return {"logits": rng.standard_normal((1, *quarter, case.num_classes), np.float32)}
    class_logits = rng.standard_normal((1, QUERIES, case.num_classes + 1), np.float32)
    class_logits[0, : QUERIES // 5, :3] += 14.0 * np.eye(3, dtype=np.float32)[np.arange(QUERIES // 5) % 3]
    class_logits[0, QUERIES // 5 :, -1] += 14.0
    return {"class_logits": class_logits, "mask_logits": rng.standard_normal((1, QUERIES, *quarter), np.float32)}


def peak_gigabytes() -> float:
    """The most memory that the process has held so far; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(Case(*json.loads(sys.argv[1])))))
