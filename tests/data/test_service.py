"""The pipeline on a tf.data service: a dispatcher and two workers, each a process of its own, on the loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from kmaskformer import build_data
from kmaskformer.config import load_config

tf = pytest.importorskip("tensorflow")

from kmaskformer.data.pipeline import offer_reader, training_dataset  # noqa: E402
from kmaskformer.data.service import Service, run_remotely, start_dispatcher, start_worker  # noqa: E402
from kmaskformer.data.synthetic import Shapes  # noqa: E402

OPTIONS = {"batch_size": 2, "image_size": (48, 48), "shuffle": True, "seed": 3, "repeat": False, "workers": 1}


def images_of(dataset) -> list[bytes]:
    """Every image of a dataset, in an order that does not depend on that of the dataset."""
    return sorted(image.tobytes() for inputs, _ in dataset for image in inputs["images"].numpy())


def test_two_workers_give_the_same_samples_each_once():
    reader = Shapes(12, image_size=(48, 48), seed=1)
    offer_reader(reader, "test/shapes")
    dispatcher = start_dispatcher(0)
    workers = [start_worker(dispatcher.target, "localhost") for _ in range(2)]
    # In order, since a pass over a dataset that ends draws an order of its own.
    options = {**OPTIONS, "shuffle": False}
    remote = training_dataset(reader, service=Service(dispatcher.target, "test/shapes"), **options)
    expected = images_of(training_dataset(reader, **options))
    assert len(set(expected)) == 12
    assert images_of(remote) == expected
    del workers


def test_the_address_is_checked():
    with pytest.raises(ValueError, match=r"must be the dispatcher's address, grpc://host:port\. Received: 'host:1'"):
        run_remotely(tf.data.Dataset.range(3), Service("host:1", "x"))


def start(repository, *arguments) -> tuple[subprocess.Popen, str]:
    """A process of the script, and the line that it prints when it is ready."""
    environment = {**os.environ, "PYTHONPATH": str(repository), "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, str(repository / "scripts/data_service.py"), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


@pytest.mark.slow
def test_one_line_of_the_configuration_moves_the_pipeline_to_other_processes(repository):
    path = str(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml")
    settings = ["data.image_size=[48, 48]", "data.train={count: 12, seed: 1}", "data.batch_size=4"]
    settings += ["data.augmentation={crop: [40, 40]}"]
    processes = []
    try:
        dispatcher, line = start(repository, "dispatcher", "--port", "0")
        processes.append(dispatcher)
        address = re.search(r"grpc://\S+", line).group()
        for _ in range(2):
            worker, line = start(repository, "worker", "--config", path, "--dispatcher", address, "--set", *settings)
            processes.append(worker)
            assert "with 12 images of shapes" in line
        local = load_config(path, settings)
        remote = load_config(path, [*settings, f"data.service={address}"])
        batches = build_data.build_dataset(remote.data, "train").take(6)
        received = images_of(batches)
        known = set(images_of(build_data.build_dataset(local.data, "train").take(30)))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(set(received)) == 24, "augmentation gives each visit of an image another look"
    assert set(received) <= known
    assert np.frombuffer(received[0], np.uint8).size == 40 * 40 * 3
