"""A fresh process for losses on two replicas."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture()
def run_on_replicas(repository, tmp_path):
    """Runs a script on TensorFlow, on the CPU; it finds a case in its first file and writes arrays to its second."""

    def run(script, case):
        files = [tmp_path / "case.npz", tmp_path / "result.npz"]
        np.savez(files[0], **case)
        own = {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", script, *map(str, files)]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(np.load(files[1]))

    return run
