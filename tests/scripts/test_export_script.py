"""`scripts/export.py`: arguments, files and exit status, with an untrained model."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import tensorflow as tf

from kmaskformer import build
from kmaskformer.config import load_config, save_config

TINY = [
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 1}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
    "evaluation.overlap_threshold=0.6",
    "data.test_shortest_edge=50",
]


@pytest.fixture(scope="module")
def run_folder(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", TINY)
    build.build_model(config.model, build.build_reader(config.data, "val").info).save(folder / "model.keras")
    save_config(config, folder / "config.yaml")
    return folder


@pytest.fixture()
def export(repository, monkeypatch):
    def call(*arguments):
        spec = importlib.util.spec_from_file_location("script_export", repository / "scripts" / "export.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        assert module.main() == 0

    return call


def test_the_exports_options_are_those_of_the_runs_evaluation(export, run_folder, tmp_path, capsys):
    output = tmp_path / "saved"
    export("--weights", run_folder, "--output", output, "--longest-edge", 0, "--outputs", "panoptic_map")
    assert capsys.readouterr().out == f"written: {output}\n"
    record = json.loads((output / "assets" / "metadata.json").read_text())
    assert (record["overlap_threshold"], record["shortest_edge"], record["longest_edge"]) == (0.6, 50, None)
    assert record["config"]["data"]["test_shortest_edge"] == 50 and record["task"] == "panoptic"
    assert tf.saved_model.contains_saved_model(str(output))


def test_errors_end_in_one_line(export, run_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*no such weights file"):
        export("--weights", tmp_path / "missing", "--output", tmp_path / "a")
    with pytest.raises(SystemExit, match=r"^error: --dtype: for --format saved_model only"):
        export("--weights", run_folder, "--output", tmp_path / "a.onnx", "--format", "onnx", "--dtype", "bfloat16")
