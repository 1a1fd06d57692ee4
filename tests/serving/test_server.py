"""The server over real sockets: answers, refusals, and that it outlives its clients."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

import kmaskformer as kmf
from kmaskformer.serving.app import SegmentationServer
from kmaskformer.serving.limits import Limits
from kmaskformer.serving.model import ServedModel


def picture(height=48, width=64):
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 1] = 255
    image[16:32, 8:24] = (0, 0, 255)
    return image


def as_file(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def read_until_closed(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def assert_alive(client):
    assert client.get("/healthz") == (200, b'{"status":"ok"}')
    assert client.post("/segment", as_file(picture()))[0] == 200


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_segments_are_the_segmenters(client, color_model, task):
    coco = pytest.importorskip("pycocotools.mask")
    status, content = client.post(f"/segment?task={task}", as_file(picture()))
    assert status == 200
    answer = json.loads(content)
    assert (answer["task"], answer["height"], answer["width"]) == (task, 48, 64)
    expected = kmf.Segmenter(color_model, task=task)(picture())
    assert len(answer["segments"]) == len(expected.segments) >= 2
    for index, (found, row) in enumerate(zip(answer["segments"], expected.segments, strict=True)):
        assert abs(found["score"] - row["score"]) < 1e-5 and tuple(found["box"]) == row["box"]
        assert {key: found[key] for key in ("id", "category_id", "label", "is_thing", "area")} == {
            key: row[key] for key in ("id", "category_id", "label", "is_thing", "area")
        }
        mask = expected.segmentation == row["id"] if expected.masks is None else expected.masks[index]
        np.testing.assert_array_equal(coco.decode(found["segmentation"]), mask)


def test_overlay_by_address_or_header(client):
    for path, headers in (("/segment?format=png", {}), ("/segment", {"Accept": "image/png"})):
        status, content, answer_headers = client.request("POST", path, as_file(picture(), "JPEG"), **headers)
        assert status == 200 and answer_headers["content-type"] == "image/png"
        drawn = np.asarray(Image.open(io.BytesIO(content)))
        assert drawn.shape == (48, 64, 3) and (drawn != picture()).any()
    assert client.post("/segment?format=svg", as_file(picture()))[0] == 400


def test_a_form_with_a_file(client):
    lines = ["--x", 'Content-Disposition: form-data; name="image"; filename="a.png"', "", ""]
    body = "\r\n".join(lines).encode() + as_file(picture()) + b"\r\n--x--\r\n"
    status, content = client.post("/segment", body, Content_Type="multipart/form-data; boundary=x")
    assert status == 200 and len(json.loads(content)["segments"]) == 3
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    status, content = client.post("/segment", body, Content_Type="multipart/form-data; boundary=x")
    assert status == 400 and b"holds no file" in content
    assert client.post("/segment", body, Content_Type="multipart/form-data")[0] == 400
    body = "\r\n".join(lines).encode() + as_file(picture()) + b"\r\n--x--\r\n"
    assert client.post("/segment", body, Content_Type="Multipart/Form-Data; boundary=x")[0] == 200


def test_predict_in_rows_and_columns(client, models):
    images = np.stack([picture(), picture()[:, ::-1]])
    expected = models[0].run("serving_default", images)
    status, answer = client.post_json("/v1/models/panoptic:predict", {"instances": images.tolist()})
    assert status == 200 and len(answer["predictions"]) == 2
    for index, row in enumerate(answer["predictions"]):
        assert set(row) == set(expected)
        for key, value in row.items():
            np.testing.assert_allclose(value, expected[key][index], atol=1e-6)
    request = {"signature_name": "serving_default", "inputs": {"images": images.tolist()}}
    status, answer = client.post_json("/v1/models/panoptic/versions/3:predict", request)
    assert status == 200
    np.testing.assert_array_equal(answer["outputs"]["panoptic_map"], expected["panoptic_map"])
    named = {"instances": [{"images": picture().tolist()}], "signature_name": "raw"}
    status, answer = client.post_json("/v1/models/panoptic:predict", named)
    assert status == 200 and np.shape(answer["predictions"][0]["class_logits"]) == (4, 4)


def test_predict_with_files(client):
    files = [{"b64": base64.b64encode(as_file(picture(48, width))).decode()} for width in (64, 40)]
    for instances in (files, [{"image_bytes": file} for file in files]):
        request = {"signature_name": "serve_encoded", "instances": instances}
        status, answer = client.post_json("/v1/models/semantic:predict", request)
        assert status == 200
        assert [row["image_sizes"] for row in answer["predictions"]] == [[48, 64], [48, 40]]
        assert np.shape(answer["predictions"][1]["class_map"]) == (48, 64)


def test_status_and_metadata_of_a_model(client):
    status, content = client.get("/v1/models/panoptic")
    version = json.loads(content)["model_version_status"][0]
    assert status == 200 and (version["version"], version["state"]) == ("3", "AVAILABLE")
    described = json.loads(client.get("/v1/models/panoptic/metadata")[1])
    assert described["model_spec"]["name"] == "panoptic"
    signature = described["metadata"]["signature_def"]["signature_def"]["serve_encoded"]
    assert signature["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["scores"]["dtype"] == "DT_FLOAT"
    sides = [dim["size"] for dim in signature["outputs"]["boxes"]["tensor_shape"]["dim"]]
    assert sides == ["-1", "-1", "4"]


WRONG_REQUESTS = [
    (b"{", "must be JSON"),
    (b"[]", "must be a JSON object"),
    (b"{}", "either `instances` or `inputs`"),
    (b'{"instances": [], "signature_name": "train"}', "`signature_name` must be one of serving_default"),
    (b'{"instances": []}', "at least one value for the input `images`"),
    (b'{"instances": [[[[1, 2, 3]]], [[[1, 2, 3], [4, 5, 6]]]]}', "one size"),
    (b'{"instances": [[[[0.5, 1, 2]]]]}', "whole numbers 0..255"),
    (b'{"instances": [[[[0, 1, 256]]]]}', "Received: 0..256"),
    (b'{"instances": ["a"], "signature_name": "serve_encoded"}', 'as {"b64": "..."}'),
    (b'{"instances": [{"b64": "?"}], "signature_name": "serve_encoded"}', "not in base64"),
]


@pytest.mark.parametrize(("body", "message"), WRONG_REQUESTS)
def test_wrong_predict_requests_are_explained(client, body, message):
    status, content = client.post("/v1/models/panoptic:predict", body)
    assert status == 400 and message in json.loads(content)["error"]


def test_unknown_names(client):
    for path in ("/v1/models/other", "/v1/models/panoptic/versions/2", "/v1/models/other/metadata"):
        status, content = client.get(path)
        assert status == 404 and "panoptic (version 3)" in json.loads(content)["error"]
    status, content = client.post("/segment?task=depth", as_file(picture()))
    assert status == 404 and "semantic (semantic)" in json.loads(content)["error"]
    before = client.get("/metrics")[1]
    refused = [("GET", "/nowhere", 404), ("GET", "/segment", 405), ("GET", "/v1/models/panoptic:predict", 405)]
    for method, path, expected in refused:
        status, content, _ = client.request(method, path)
        assert status == expected and "POST requests" in json.loads(content)["error"]
    for counted in (b'route="none",status="404"', b'route="none",status="405"', b'route="predict",status="405"'):
        assert counted in client.get("/metrics")[1], before


def test_what_is_no_image(client):
    status, content = client.post("/segment", b"dear server, please segment this")
    assert status == 415 and b"image file" in content
    status, content = client.post("/segment", b"")
    assert status == 400 and b"empty" in content
    truncated = as_file(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8), "JPEG")[:2000]
    status, content = client.post("/segment", truncated)
    assert status == 400 and b"cannot be read" in content
    header = as_file(picture())[:33]
    assert client.post("/segment", header)[0] == 400
    for file, expected in ((truncated, 400), (header, 400), (b"text", 415), (as_file(picture(), "BMP"), 415)):
        request = {"signature_name": "serve_encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}
        assert client.post_json("/v1/models/panoptic:predict", request)[0] == expected
    assert_alive(client)


def test_a_bomb_is_refused_before_it_is_decoded(client):
    buffer = io.BytesIO()
    Image.new("1", (30000, 30000)).save(buffer, "PNG")
    start = time.monotonic()
    status, content = client.post("/segment", buffer.getvalue())
    assert status == 413 and b"pixels at most" in content
    request = {"signature_name": "serve_encoded", "instances": [{"b64": base64.b64encode(buffer.getvalue()).decode()}]}
    assert client.post_json("/v1/models/panoptic:predict", request)[0] == 413
    assert time.monotonic() - start < 10
    assert client.post("/segment", as_file(np.zeros((1025, 1024, 3), np.uint8)))[0] == 413
    many = {"signature_name": "serve_encoded"}
    many["instances"] = [{"b64": base64.b64encode(as_file(np.zeros((1024, 600, 3), np.uint8))).decode()}] * 2
    status, answer = client.post_json("/v1/models/panoptic:predict", many)
    assert status == 413 and "fewer images" in answer["error"]
    tall_and_wide = as_file(np.zeros((1200, 400, 3), np.uint8)), as_file(np.zeros((400, 1200, 3), np.uint8))
    many["instances"] = [{"b64": base64.b64encode(file).decode()} for file in tall_and_wide]
    status, answer = client.post_json("/v1/models/panoptic:predict", many)
    assert status == 413 and "fewer images" in answer["error"]
    assert_alive(client)


def test_a_long_image_is_refused(client):
    """What is computed grows with the square of an image's longest side, however narrow it is."""
    assert client.post("/segment?task=panoptic", as_file(np.zeros((1, 8192, 3), np.uint8)))[0] == 200
    file = as_file(np.zeros((8193, 1, 3), np.uint8))
    status, content = client.post("/segment", file)
    assert status == 413 and b"8192 on a side. Received: 1 x 8193" in content
    request = {"signature_name": "serve_encoded", "instances": [{"b64": base64.b64encode(file).decode()}]}
    assert client.post_json("/v1/models/panoptic:predict", request)[0] == 413
    status, answer = client.post_json("/v1/models/panoptic:predict", {"instances": [[[[0, 0, 0]] * 8193]]})
    assert status == 413 and "8193 x 1" in answer["error"]


def test_a_body_beyond_the_limit(client):
    status, content = client.post("/segment", bytes(2**21 + 1))
    assert status == 413 and b"bytes at most" in content
    status, _ = client.post("/segment", (bytes(2**19) for _ in range(6)))  # in chunks
    assert status == 413
    assert_alive(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-",
        b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome",
    ],
)
def test_a_client_that_stalls_is_told_so(client, sent):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        received = read_until_closed(connection)
        assert b"HTTP/1.1 408" in received
        assert time.monotonic() - start < 10
    assert_alive(client)


def test_a_client_that_stalls_in_its_second_request(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        assert b"HTTP/1.1 408" in read_until_closed(connection)


def test_a_client_that_drips_does_not_hold_its_place(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        start = time.monotonic()
        while time.monotonic() - start < 4.5:
            connection.sendall(b"x")
            time.sleep(0.3)
        assert b"HTTP/1.1 408" in read_until_closed(connection)


def test_a_client_that_leaves(client):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome")
    assert_alive(client)


def test_two_hundred_clients_at_once(start):
    """Each gets its own answer or is told to come back; images of one size are computed together."""
    with start(pending=24, batch_images=4) as client:

        def ask(index):
            status, content = client.post("/segment", as_file(picture(48, 64 if index % 2 else 80)))
            return index, status, json.loads(content)

        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
        statuses = [status for _, status, _ in answers]
        assert set(statuses) <= {200, 503} and statuses.count(200) >= 24
        for index, status, answer in answers:
            assert status == 503 or answer["width"] == (64 if index % 2 else 80)
        assert_alive(client)
        counted = client.get("/metrics")[1].decode()
        assert f'kmaskformer_requests_total{{route="segment",status="200"}} {statuses.count(200) + 1}.0' in counted
        images = float(counted.split('kmaskformer_batch_images_sum{model="panoptic"} ')[1].split()[0])
        batches = float(counted.split('kmaskformer_batch_images_count{model="panoptic"} ')[1].split()[0])
        assert images == statuses.count(200) + 1 and batches < images
        assert "kmaskformer_pending_requests 0.0" in counted


def test_a_full_server_says_when_to_come_back(start, models, monkeypatch):
    release = threading.Event()
    run = ServedModel.run
    monkeypatch.setattr(ServedModel, "run", lambda *arguments: (release.wait(20), run(*arguments))[1])
    with start(pending=2) as client, concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/segment", as_file(picture())) for _ in range(2)]
        while client.segmentation.batchers["panoptic"].pending < 2:
            time.sleep(0.01)
        status, content, headers = client.request("POST", "/segment", as_file(picture()))
        assert status == 503 and headers["retry-after"] == "1" and b"under way already" in content
        assert client.get("/healthz")[0] == 200
        release.set()
        assert [future.result()[0] for future in waiting] == [200, 200]


def test_a_stop_waits_for_the_requests_under_way(start, monkeypatch):
    begun = threading.Event()
    run = ServedModel.run
    monkeypatch.setattr(ServedModel, "run", lambda *arguments: (begun.set(), time.sleep(1.0), run(*arguments))[2])
    with start() as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/segment", as_file(picture()))
        assert begun.wait(10)
        client.server.should_exit = True
        assert waiting.result()[0] == 200
        client.thread.join(20)
        assert not client.thread.is_alive()
        with pytest.raises(OSError):
            client.get("/healthz")


def test_a_failure_of_the_model_is_one_answer(start, monkeypatch, caplog):
    with start() as client:

        def fail(*arguments):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(ServedModel, "run", fail)
            status, content = client.post("/segment", as_file(picture()))
            assert status == 500 and b"its log says why" in content and b"memory" not in content
            status, _ = client.post_json("/v1/models/panoptic:predict", {"instances": [picture().tolist()]})
            assert status == 500
            file = {"b64": base64.b64encode(as_file(picture())).decode()}
            request = {"signature_name": "serve_encoded", "instances": [file]}
            assert client.post_json("/v1/models/panoptic:predict", request)[0] == 500  # not the image's fault
        assert "out of memory" in caplog.text
        assert_alive(client)


def test_listens_on_this_machine_only_unless_told(client):
    assert client.server.config.host == "127.0.0.1"


def test_what_cannot_be_served(models, exports, color_model, tmp_path):
    with pytest.raises(ValueError, match="each name once"):
        SegmentationServer([models[0], models[0]])
    with pytest.raises(ValueError, match=r"at least one model.*Received: \[\]"):
        SegmentationServer([])
    with pytest.raises(FileNotFoundError, match="no SavedModel, and no folder of numbered versions"):
        ServedModel(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Export the model with `export_saved_model`"):
        ServedModel(tmp_path)
    with pytest.raises(ValueError, match=r"`pending` must be positive\. Received: pending=0"):
        Limits(pending=0)


def test_reduced_outputs_serve_predict_only(color_model, tmp_path):
    kmf.export_saved_model(color_model, tmp_path / "map", outputs=("panoptic_map",), config={})
    model = ServedModel(tmp_path / "map")
    assert not model.describes_segments and model.version == "1" and model.name == "map"
