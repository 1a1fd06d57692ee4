"""Runs of `scripts/train.py` that are killed, told to end, or spread over two workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

SETTINGS = [
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 2, "
    "dropout: 0.1}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
    "data.image_size=[64, 64]",
    "data.augmentation={crop: [64, 64]}",
    "data.train={count: 9, seed: 0}",
    "data.val={count: 2, seed: 1}",
    "data.batch_size=2",
    "training={steps: 12, evaluate_every: 6, checkpoint_every: 2, log_every: 1, deterministic: true}",
    "optimizer={schedule: {warmup_steps: 5}, ema: 0.9}",
]

# Without dropout and statistics of a replica's own, two workers do what one process does. At the recipe's learning rate
# AdamW makes 1e-3 of the rounding's 1e-7 in twelve updates.
EXACT = [
    "model.transformer_decoder.dropout=0.0",
    "model.backbone.norm=frozen",
    "optimizer.learning_rate=1.0e-4",
]


@pytest.fixture()
def start(repository):
    """Starts `train.py` for a folder; processes that are left are killed."""
    processes = []

    def start_one(folder: Path, *arguments: str, settings: Sequence[str] = (), **environment: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(repository), "KERAS_BACKEND": "tensorflow", **environment}
        command = [sys.executable, str(repository / "scripts/train.py"), "--output", str(folder), *arguments]
        command += ["--config", str(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml")]
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--set", *SETTINGS, *settings], env=environment, stdout=log, stderr=log
            )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


def losses(folder: Path) -> dict[int, float]:
    """Loss of each update."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, f"the run ended before {path.name} was there"
        time.sleep(0.01)


def test_a_run_that_is_killed_and_told_to_end_has_the_loss_curve_of_a_straight_one(start, tmp_path, rng):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert start(straight).wait() == 0
    process = start(broken)
    wait_for(broken / "checkpoints/step_00000002", process)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.wait()
    process = start(broken, "--resume")
    wait_for(broken / "checkpoints/step_00000006", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert "SIGTERM: saved after update" in (tmp_path / "broken.log").read_text()
    assert start(broken, "--resume").wait() == 0
    assert losses(broken) == losses(straight)
    assert sorted(losses(straight)) == list(range(1, 13))
    expected, received = (json.loads((folder / "metrics.json").read_text()) for folder in (straight, broken))
    assert received == expected, "the scores are those of the averaged weights"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(start, folder: Path, *arguments: str) -> list[subprocess.Popen]:
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    clusters = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    arguments = ["--strategy", "multi_worker", *arguments]
    return [start(folder, *arguments, settings=EXACT, TF_CONFIG=json.dumps(one)) for one in clusters]


def test_two_workers_train_as_one_process_and_go_on_after_one_was_killed(start, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert start(one, settings=EXACT).wait() == 0
    workers = start_workers(start, two)
    wait_for(two / "checkpoints/step_00000004", workers[0])
    workers[1].kill()  # a scheduler restarts all of them when one is gone
    workers[0].kill()
    assert {worker.wait() for worker in workers} == {-signal.SIGKILL}
    workers = start_workers(start, two, "--resume")
    assert [worker.wait() for worker in workers] == [0, 0]
    expected, received = losses(one), losses(two)
    assert sorted(received) == sorted(expected)
    np.testing.assert_allclose([received[step] for step in expected], list(expected.values()), rtol=1e-5)
    assert (two / "model.keras").exists() and (two / "metrics.json").exists()
