"""A batch of 8 gives one update, however it is spread: one replica, two parts, two replicas, two processes.

The images have between 0 and 4 segments, so that denominators of a replica's or a part's own would show.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

WAYS = ["parts", "two", "worker"]
SCRIPT = Path(__file__).with_name("replica_runs.py")


@pytest.fixture(scope="module")
def runs(repository, tmp_path_factory) -> dict[str, np.ndarray]:
    """Losses, clipped gradients and weights by `way/precision/optimizer/what`."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "PYTHONPATH": str(repository), "KERAS_BACKEND": "tensorflow"}
    environment.pop("TF_CONFIG", None)

    def start(way: str, *precisions: str, **more: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), str(folder / f"{way}.npz"), way, *precisions]
        return subprocess.Popen(command, env={**environment, **more})

    assert start("local", "float32", "mixed_float16", "mixed_bfloat16").wait() == 0
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other)]
    clusters = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    workers = [start("worker", "float32", "mixed_float16", TF_CONFIG=json.dumps(cluster)) for cluster in clusters]
    assert [worker.wait() for worker in workers] == [0, 0]
    arrays = {}
    for way in ("local", "worker"):
        with np.load(folder / f"{way}.npz") as file:
            assert file["replicas"] == 2
            arrays |= {name: file[name] for name in file if "/" in name}
    return arrays


def relative(runs: dict[str, np.ndarray], way: str, kind: str, what: str, updates: int = 10) -> float:
    """Largest difference from one replica over the first updates, in parts of the norm."""
    expected, received = runs[f"one/{kind}/{what}"], runs[f"{way}/{kind}/{what}"]
    assert expected.shape == received.shape and len(expected) == 10
    expected, received = expected[:updates], received[:updates]
    norms = np.linalg.norm(expected, axis=1)
    differences = np.linalg.norm(received - expected, axis=1)
    return float((differences[norms > 0] / norms[norms > 0]).max())


@pytest.mark.parametrize("way", WAYS)
def test_sgd(runs, way):
    assert relative(runs, way, "float32/sgd", "losses") < 1e-4
    assert relative(runs, way, "float32/sgd", "gradients") < 1e-4
    one, other = runs["one/float32/sgd/weights"], runs[f"{way}/float32/sgd/weights"]
    np.testing.assert_allclose(other, one, atol=1e-5)
    assert np.abs(one - runs["one/float32/sgd/start"]).max() > 1e-2, "the weights must have moved"


@pytest.mark.parametrize("way", WAYS)
def test_adamw(runs, way):
    one, other = runs["one/float32/adamw/losses"], runs[f"{way}/float32/adamw/losses"]
    np.testing.assert_allclose(other, one, rtol=1e-4)


@pytest.mark.parametrize(
    ("way", "precision"),
    [
        (way, precision)
        for precision in ("mixed_float16", "mixed_bfloat16")
        for way in WAYS
        if (way, precision) != ("worker", "mixed_bfloat16")
    ],
)
def test_mixed_precision(runs, way, precision):
    """One rounding of the low precision, 2^-11 of float16 and 2^-8 of bfloat16, before differences have grown."""
    limit = {"mixed_float16": 2**-11, "mixed_bfloat16": 2**-8}[precision]
    assert relative(runs, way, f"{precision}/sgd", "losses", updates=3) < limit
    # A sum over a batch of rounded values.
    assert relative(runs, way, f"{precision}/sgd", "gradients", updates=1) < 8 * limit


def test_all_replicas_skip_an_update_that_overflowed(runs):
    """At the first update the scaled gradient is beyond float16: no replica moves, and all halve the scale."""
    for way in ("one", *WAYS):
        gradients = runs[f"{way}/mixed_float16/overflow/gradients"]
        assert not gradients[0].any() and gradients[-1].any()
