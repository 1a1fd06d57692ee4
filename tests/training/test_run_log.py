"""The files of a run: rows, pictures, TensorBoard events, and what a resumed or killed run finds."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer.training import run_log as run_log_module
from kmaskformer.training.run_log import RunLog, scalars


def read_csv(log: RunLog) -> list[dict[str, str]]:
    with (log.folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder) -> tuple[dict[str, list[tuple[int, float]]], dict[str, np.ndarray]]:
    """Scalars as name -> [(step, value)], and the last image of each name, from the event files."""
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tf = pytest.importorskip("tensorflow")
    accumulator = accumulator_module.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    numbers, images = {}, {}
    for tag in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors(tag):
            value = tf.make_ndarray(event.tensor_proto)
            if value.ndim == 0:
                numbers.setdefault(tag, []).append((event.step, float(value)))
            else:
                images[tag] = tf.io.decode_png(value[2]).numpy()
    return numbers, images


def test_rows_in_all_three_places(tmp_path):
    log = RunLog(tmp_path)
    log.write("train", 5, {"loss": np.float32(2.0), "loss_ce": 1.5, "note": "text", "list": [1, 2]})
    log.write("train", 10, {"loss": 1.0, "loss_ce": float("nan")})
    log.write("evaluation", 10, {"semantic/mIoU": 0.25})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kind"]) for row in lines] == [(5, "train"), (10, "train"), (10, "evaluation")]
    assert lines[0]["loss"] == 2.0 and "note" not in lines[0] and "list" not in lines[0]
    assert lines[1]["loss_ce"] is None
    table = read_csv(log)
    assert [row["semantic/mIoU"] for row in table] == ["", "", "0.25"]
    assert [row["loss"] for row in table] == ["2.0", "1.0", ""]
    numbers, _ = read_events(tmp_path / "tensorboard")
    assert numbers["train/loss"] == [(5, 2.0), (10, 1.0)]
    assert numbers["evaluation/semantic/mIoU"] == [(10, 0.25)]


def test_rows_by_kind(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": 1.0})
    log.write("evaluation", 1, {"score": 0.5})
    assert [row["kind"] for row in log.rows("evaluation")] == ["evaluation"]
    assert len(log.rows()) == 2


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "kind": "tra')
    resumed = RunLog(tmp_path, start_step=20, tensorboard=False)
    assert [row["step"] for row in resumed.rows()] == [10, 20]
    resumed.write("train", 30, {"loss": -1.0})
    assert [(row["step"], row["loss"]) for row in read_csv(resumed)] == [("10", "10.0"), ("20", "20.0"), ("30", "-1.0")]


def test_a_new_run_starts_anew(tmp_path):
    RunLog(tmp_path, tensorboard=False).write("train", 3, {"loss": 1.0})
    assert RunLog(tmp_path, tensorboard=False).rows() == []


def test_a_picture_is_a_file_and_a_tensorboard_image(tmp_path, rng):
    image = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    log = RunLog(tmp_path)
    path = log.picture("predictions", 40, Image.fromarray(image))
    log.close()
    assert path == tmp_path / "pictures" / "predictions_0000040.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    _, images = read_events(tmp_path / "tensorboard")
    np.testing.assert_array_equal(images["predictions"], image)


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`image` must be .height, width, 3. uint8. Received: \(4, 4\) float64"):
        RunLog(tmp_path, tensorboard=False).picture("x", 1, np.zeros((4, 4)))


def test_without_tensorboard_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log_module.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else 1)
    with pytest.warns(UserWarning, match=r"because tensorboard is not installed\. .*install\.sh tensorboard"):
        log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    assert len(log.rows()) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_scalars_takes_single_numbers_only():
    values = {"a": 1, "b": np.float32(0.5), "c": np.zeros(2), "d": "1", "e": None, "f": np.array(True)}
    assert scalars(values) == {"a": 1.0, "b": 0.5, "f": 1.0}
