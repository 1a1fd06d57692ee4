"""`benchmark.py serving` and `quantization` from end to end, on a model too small for its figures to mean anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

OVERRIDES = [
    "data.image_size=[64, 64]",
    "data.val={count: 3, seed: 1}",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_folder(make_run_folder, tmp_path_factory):
    return make_run_folder(tmp_path_factory.mktemp("run"), OVERRIDES)


@pytest.fixture(scope="module")
def benchmark(repository):
    def call(*arguments):
        command = [sys.executable, str(repository / "scripts" / "benchmark.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return call


def test_serving(benchmark, run_folder):
    options = ("--size", 64, 64, "--repeats", 2, "--seconds", 1, "--clients", 1, 3)
    printed = benchmark("serving", "--weights", run_folder, *options)
    assert re.search(r"SavedModel, raw / compiled forward: \d+\.\d{3}", printed)
    assert re.search(r"onnxruntime, raw / SavedModel, raw: \d+\.\d{3}", printed)
    assert re.search(r"cold start / TensorFlow: import and load: \d+\.\d{3}", printed)
    assert len(re.findall(r"\d clients: +[\d.]+ images/s +p50 +[\d.]+ ms +p99 +[\d.]+ ms", printed)) == 2


def test_quantization(benchmark, run_folder):
    printed = benchmark("quantization", "--weights", run_folder)
    assert re.search(r"^none +mIoU 0\.\d{4} ", printed, re.M) and re.search(r"^dynamic +mIoU 0\.\d{4} ", printed, re.M)
    assert re.search(r"^3 images of 64 x 64: [\d.]+% of their pixels have the same class", printed, re.M)
