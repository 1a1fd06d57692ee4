"""`scripts/serve.py` as a process: it says where it listens, answers, and stops when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
import tensorflow as tf


@pytest.fixture()
def serve(repository):
    def call(*arguments):
        command = [sys.executable, str(repository / "scripts" / "serve.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return call


def write_export(folder):
    """The least that can be served: a map of zeros."""
    module = tf.Module()
    images = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    serve = tf.function(lambda images: {"class_map": tf.cast(images[..., 0], tf.int32)}, input_signature=[images])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve.get_concrete_function()})
    (folder / "assets" / "metadata.json").write_text(
        '{"task": "semantic", "dataset": "one", "class_names": ["all"], "thing_ids": [], "colors": [[9, 9, 9]],'
        ' "ignore_value": 255, "dataset_ids": [0], "signatures": {"serving_default": {"inputs": {"images":'
        ' {"dtype": "uint8", "shape": [-1, -1, -1, 3]}}, "outputs": {"class_map": {"dtype": "int32",'
        ' "shape": [-1, -1, -1]}}}}}'
    )


def test_serves_until_asked_to_stop(serve, tmp_path):
    write_export(tmp_path / "model")
    process = serve("--model", f"zeros={tmp_path / 'model'}", "--port", 0)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving zeros (semantic) on http://127.0.0.1:"), process.stderr.read()[-2000:]
        address = line.split()[-1]
        request = urllib.request.Request(f"{address}/v1/models/zeros:predict", b'{"instances": [[[[7, 8, 9]]]]}')
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read() == b'{"predictions":[[[7]]]}'
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()


def test_a_missing_model_ends_in_one_line(serve, tmp_path):
    process = serve("--model", tmp_path / "nothing")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 1
    assert printed.splitlines()[-1].startswith("error: ") and "no SavedModel" in printed.splitlines()[-1]
