"""`scripts/export.py`: arguments, files and exit status, with an untrained model."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmaskformer import trained_run
from kmaskformer.config import load_config, save_config

OVERRIDES = [
    "evaluation.overlap_threshold=0.6",
    "evaluation.object_mask_threshold=0.05",  # an untrained model is sure of nothing
    "data.test_shortest_edge=50",
]


@pytest.fixture(scope="module")
def run_folder(make_run_folder, tmp_path_factory):
    return make_run_folder(tmp_path_factory.mktemp("run"), OVERRIDES)


@pytest.fixture()
def export(load_script, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        assert load_script("export").main() == 0

    return call


def test_the_exports_options_are_those_of_the_runs_evaluation(export, run_folder, tmp_path, capsys):
    output = tmp_path / "saved"
    export("--weights", run_folder, "--output", output, "--longest-edge", 0, "--outputs", "panoptic_map")
    assert capsys.readouterr().out == f"written: {output}\n"
    record = json.loads((output / "assets" / "metadata.json").read_text())
    assert (record["overlap_threshold"], record["shortest_edge"], record["longest_edge"]) == (0.6, 50, None)
    assert record["config"]["data"]["test_shortest_edge"] == 50 and record["task"] == "panoptic"
    assert tf.saved_model.contains_saved_model(str(output))


@pytest.fixture(scope="module")
def picture():
    """A picture of the size at which the run is evaluated, so that the segmenter does not resize it."""
    rows, columns = np.mgrid[:50, :75]
    return np.stack([rows * 5, columns * 3, (rows // 9 + columns // 14) % 2 * 255], axis=-1).astype(np.uint8)


def expected_result(run_folder, picture, task):
    model = trained_run.load_model(run_folder)
    result = trained_run.build_segmenter(model, trained_run.run_config(run_folder), task)(picture)
    assert result.segments, "the test should see a segment"
    return result


@pytest.mark.slow
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_onnx_files_answer_as_the_segmenter(export, run_folder, picture, tmp_path, task):
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed (extra `onnx`)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
    path = tmp_path / "model.onnx"
    export("--weights", run_folder, "--output", path, "--format", "onnx", "--task", task)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = expected_result(run_folder, picture, task)
    if task == "semantic":
        (class_map,) = session.run(["class_map"], {"images": picture[None]})
        assert np.mean(class_map[0] != expected.segmentation) < 1e-3
        return
    names = ["panoptic_map", "valid", "category_ids", "scores"]
    panoptic_map, valid, category_ids, scores = (value[0] for value in session.run(names, {"images": picture[None]}))
    assert np.mean(panoptic_map != expected.segmentation) < 1e-3
    assert category_ids[valid].tolist() == [row["category_id"] for row in expected.segments]
    np.testing.assert_allclose(scores[valid], [row["score"] for row in expected.segments], atol=1e-4)


@pytest.mark.slow
def test_litert_files_answer_as_the_segmenter(export, run_folder, picture, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    expected = expected_result(run_folder, picture, "semantic")
    sizes = {}
    for quantization, limit in (("none", 1e-3), ("dynamic", 0.2)):
        path = tmp_path / f"{quantization}.tflite"
        arguments = ("--format", "litert", "--task", "semantic", "--image-size", 50, 75, "--quantization", quantization)
        export("--weights", run_folder, "--output", path, *arguments)
        run = interpreter.Interpreter(model_path=str(path)).get_signature_runner()
        assert np.mean(run(images=picture[None])["class_map"][0] != expected.segmentation) < limit
        sizes[quantization] = path.stat().st_size
    assert sizes["dynamic"] < 0.4 * sizes["none"]


def test_a_run_in_tiles_is_exported_for_whole_images(export, run_folder, tmp_path, capsys):
    folder, output = tmp_path / "tiled", tmp_path / "saved"
    shutil.copytree(run_folder, folder)
    save_config(load_config(folder / "config.yaml", ["evaluation.tile_size=32"]), folder / "config.yaml")
    export("--weights", folder, "--output", output, "--outputs", "panoptic_map")
    assert "note: the run was evaluated in tiles of 32 x 32 pixels." in capsys.readouterr().err
    assert (output / "saved_model.pb").is_file()


def test_errors_end_in_one_line(export, run_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*no such weights file"):
        export("--weights", tmp_path / "missing", "--output", tmp_path / "a")
    with pytest.raises(SystemExit, match=r"^error: --dtype: for --format saved_model only"):
        export("--weights", run_folder, "--output", tmp_path / "a.onnx", "--format", "onnx", "--dtype", "bfloat16")
    with pytest.raises(SystemExit, match=r"^error: --image-size: for --format litert only"):
        export("--weights", run_folder, "--output", tmp_path / "a", "--image-size", 50, 75)
    with pytest.raises(SystemExit, match=r"^error: `shortest_edge` must be a positive number .*shortest_edge=-1"):
        export("--weights", run_folder, "--output", tmp_path / "a", "--shortest-edge", -1)
    with pytest.raises(SystemExit, match=r"^error: --format litert needs --image-size HEIGHT WIDTH"):
        export("--weights", run_folder, "--output", tmp_path / "a.tflite", "--format", "litert")
