"""The files of a run: rows, pictures, TensorBoard events, and what a resumed or killed run finds."""

from __future__ import annotations

import csv
import errno
import json
import warnings

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


@pytest.fixture()
def full_disk(monkeypatch):
    """Fills the disk for files with these endings of their paths; without any, there is space again."""
    functions = {name: getattr(run_log_module, name) for name in ("append_whole", "written_to_disk")}

    def fill(*endings):
        def full(name):
            def write(path, *arguments):
                if str(path).endswith(endings):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return functions[name](path, *arguments)

            return write

        for name in functions:
            monkeypatch.setattr(run_log_module, name, full(name))

    return fill


def test_rows_wait_on_a_full_disk_and_are_written_when_there_is_space(tmp_path, full_disk):
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 1.0})
    full_disk(".jsonl", ".csv")
    with pytest.warns(RuntimeWarning) as warned:
        log.write("train", 2, {"loss": 2.0})
        log.write("evaluation", 2, {"score": float("nan")})
    (message,) = {str(warning.message) for warning in warned}
    assert message.startswith(f"{tmp_path / 'metrics.jsonl'}: cannot be written: [Errno 28] No space left on device")
    assert [row["step"] for row in log.rows()] == [1, 2, 2], "rows that wait count"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(read_csv(log)) == 1
    full_disk()
    log.write("train", 3, {"loss": 3.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 2, 2, 3]
    assert [row["kind"] for row in lines] == ["train", "train", "evaluation", "train"]
    assert [row["loss"] for row in read_csv(log)] == ["1.0", "2.0", "", "3.0"]
    log.close()
    numbers, _ = read_events(tmp_path / "tensorboard")
    assert sorted(numbers["train/loss"]) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_rows_that_wait_are_written_when_the_log_is_closed(tmp_path, full_disk):
    log = RunLog(tmp_path, tensorboard=False)
    full_disk(".jsonl")
    with pytest.warns(RuntimeWarning, match=r"metrics\.jsonl: cannot be written"):
        log.write("train", 2, {"loss": 2.0})
    full_disk()
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2]


def test_a_table_that_could_not_be_written_is_written_with_the_next_row(tmp_path, full_disk):
    log = RunLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": 1.0})
    full_disk(".csv")
    with pytest.warns(RuntimeWarning, match=r"metrics\.csv: cannot be written: .*No space"):
        log.write("train", 2, {"loss": 2.0})
    full_disk()
    log.write("train", 3, {"loss": 3.0})
    assert [row["step"] for row in read_csv(log)] == ["1", "2", "3"]


def test_a_picture_that_cannot_be_written_is_warned_of(tmp_path, full_disk):
    log = RunLog(tmp_path, tensorboard=False)
    full_disk(".png")
    with pytest.warns(RuntimeWarning, match=r"pictures/predictions_0000040\.png: cannot be written: .*No space"):
        path = log.picture("predictions", 40, np.zeros((4, 4, 3), np.uint8))
    assert not path.exists()


def test_tensorboard_events_that_cannot_be_written_are_warned_of(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path)
    (tmp_path / "tensorboard").write_text("in the way of the folder")
    with pytest.warns(RuntimeWarning, match=r"tensorboard: cannot be written"):
        log.write("train", 1, {"loss": 1.0})
    (tmp_path / "tensorboard").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.write("train", 2, {"loss": 2.0})
    log.close()
    assert [row["step"] for row in log.rows()] == [1, 2]
    assert read_events(tmp_path / "tensorboard")[0]["train/loss"] == [(2, 2.0)]


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
