"""A running server with exports of a model that knows colours, and a client that can misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time

import keras
import numpy as np
import pytest
from keras import ops

import kmaskformer as kmf
from kmaskformer.serving.app import SegmentationServer
from kmaskformer.serving.limits import Limits
from kmaskformer.serving.model import ServedModel
from kmaskformer.serving.server import make_server

INFO = kmf.DatasetInfo("colors", ("red", "green", "blue"), (0, 2), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class Colors(keras.Model):
    """Query i finds what is red, green or blue, at stride 4; the fourth is no object."""

    num_classes = 3
    dataset_info = INFO

    def padded_size(self, height, width):
        return -(-height // 4) * 4, -(-width // 4) * 4

    def call(self, images, image_sizes=None, training=None):
        batch, height, width, _ = ops.shape(images)
        padded = self.padded_size(height, width)
        images = ops.pad(ops.cast(images, "float32"), ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
        masks = ops.average_pool(images, 4, 4, "valid") - 128.0
        masks = ops.concatenate([masks, ops.ones_like(masks[..., :1]) * 99], axis=-1)
        class_logits = ops.broadcast_to(ops.convert_to_tensor(np.eye(4, dtype="float32") * 8)[None], (batch, 4, 4))
        return {"class_logits": class_logits, "mask_logits": ops.transpose(masks, (0, 3, 1, 2)) / 16.0}


@pytest.fixture(scope="session")
def color_model():
    return Colors()


@pytest.fixture(scope="session")
def exports(color_model, tmp_path_factory):
    """One export for each task; the panoptic one in a folder of versions."""
    folder = tmp_path_factory.mktemp("exports")
    for task, path in (("semantic", "semantic"), ("instance", "instance"), ("panoptic", "panoptic/3")):
        kmf.export_saved_model(color_model, folder / path, task=task, config={})
    return folder


@pytest.fixture(scope="session")
def models(exports):
    served = [ServedModel(exports / task) for task in ("panoptic", "semantic", "instance")]
    for model in served:
        model.warm_up()
    return served


class Client:
    """Speaks HTTP with a server on this machine."""

    def __init__(self, port):
        self.port = port

    def request(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def post(self, path, body, **headers):
        status, content, _ = self.request("POST", path, body, **headers)
        return status, content

    def post_json(self, path, value):
        status, content = self.post(path, json.dumps(value))
        return status, json.loads(content)

    def get(self, path):
        status, content, _ = self.request("GET", path)
        return status, content


@pytest.fixture(scope="session")
def start(models):
    """Starts servers with given limits; gives client and server."""

    @contextlib.contextmanager
    def running(**limits):
        segmentation = SegmentationServer(models, Limits(**limits))
        server = make_server(segmentation, port=0)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        client.server, client.segmentation, client.thread = server, segmentation, thread
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def client(start):
    """A server for all tests that do not mind each other."""
    with start(idle_seconds=1.5, upload_seconds=4.0, body_bytes=2**21, image_pixels=2**20) as running:
        yield running
