"""What `--weights` may name, and who reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kmaskformer.command_line import evaluate, weights
from kmaskformer.command_line.main import main
from kmaskformer.config import load_config
from kmaskformer.preset_folder import PresetInfo
from kmaskformer.structures import DatasetInfo

CONFIG = Path(__file__).resolve().parents[2] / "configs/shapes/panoptic/maskformer_resnet18.yaml"
INFO = DatasetInfo("two", ("soil", "crop"), thing_ids=(1,))


@pytest.fixture()
def asked(monkeypatch):
    """The sources that `from_preset` was asked for; it answers with their names."""
    sources = []

    def from_preset(source):
        sources.append(source)
        return f"model of {source}"

    monkeypatch.setattr(weights, "from_preset", from_preset)
    return sources


@pytest.mark.parametrize("source", ["maskformer_swin_tiny_ade20k150", "hf://facebook/maskformer-swin-tiny-ade"])
def test_names_are_presets(asked, source):
    assert weights.model_or_run(source) == f"model of {source}"


@pytest.mark.parametrize("name", ["model_final_d8dbeb.pkl", "x.pth", "x.bin", "x.safetensors", "X.PKL"])
def test_files_of_others_are_presets(asked, tmp_path, name):
    (tmp_path / name).touch()
    assert weights.model_or_run(str(tmp_path / name)) == f"model of {tmp_path / name}"
    with pytest.raises(FileNotFoundError, match=rf"absent/{name}: no such weights file"):
        weights.model_or_run(f"absent/{name}")


@pytest.mark.parametrize("name", ["model.keras", "best.weights.h5", "run"])
def test_files_and_folders_of_a_run_are_not(asked, tmp_path, name):
    (tmp_path / "run").mkdir()
    assert weights.model_or_run(str(tmp_path / name)) == str(tmp_path / name) and not asked


def test_evaluate_takes_presets(asked, monkeypatch, repository, capsys):
    config = str(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml")
    evaluated = []

    def take(_, model, *__):
        evaluated.append(model)
        return model, {"evaluation/failed_images": 0}

    monkeypatch.setattr("kmaskformer.experiment.evaluate", take)
    name = "maskformer_resnet50_ade20k150"
    assert evaluate.main(["--config", config, "--weights", name]) == 0
    assert evaluated == [f"model of {name}"]


@pytest.fixture()
def opened(monkeypatch):
    """Opens a segmenter for command line arguments; of a run whose pictures show panoptic results, or of a preset."""

    class Model:
        num_classes, dataset_info, preset_info = 2, INFO, PresetInfo(object_mask_threshold=0.7)

    config = load_config(CONFIG, ["evaluation.overlap_threshold=0.6", "evaluation.object_mask_threshold=0.5"])
    monkeypatch.setattr("kmaskformer.trained_run.run_config", lambda _: config)
    monkeypatch.setattr("kmaskformer.trained_run.load_model", lambda _: Model())
    monkeypatch.setattr(weights, "from_preset", lambda _: Model())

    def call(source, *arguments, default_task="semantic"):
        parser = argparse.ArgumentParser()
        weights.add_result_options(parser, default_task)
        return weights.open_segmenter(source, parser.parse_args(arguments))[0]

    return call


def test_the_task_is_the_runs_own(opened):
    assert opened("run/model.keras").task == opened("run/model.keras", default_task="instance").task == "panoptic"
    assert opened("run/model.keras", "--task", "instance").task == "instance"
    assert opened("preset").task == "semantic" and opened("preset", default_task="panoptic").task == "panoptic"


def test_thresholds_are_the_runs_or_those_given(opened, capsys):
    def thresholds(*arguments):
        return tuple(opened(*arguments).postprocess.thresholds.values())

    assert thresholds("run/model.keras") == (0.5, 0.6, 0.5)
    assert thresholds("run/model.keras", "--overlap-threshold", "0", "--object-mask-threshold", "0.1") == (0.1, 0, 0.5)
    assert thresholds("run/model.keras", "--task", "instance", "--score-threshold", "0.9") == (0.5, 0.6, 0.9)
    assert thresholds("preset", "--task", "panoptic") == (0.7, 0.8, 0.5)
    assert thresholds("preset", "--inference", "general", "--object-mask-threshold", "0.3") == (0.3, None, 0.5)
    assert capsys.readouterr().err == ""
    thresholds("preset", "--task", "panoptic", "--score-threshold", "0.9")
    assert "warning: --score-threshold has no effect on panoptic results" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`overlap_threshold` must lie in 0\.\.1"):
        opened("preset", "--overlap-threshold", "60")


@pytest.mark.parametrize("command", ["predict", "export"])
def test_thresholds_are_explained(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    for option in ("--task", "--object-mask-threshold", "--overlap-threshold", "--score-threshold"):
        assert f"\n  {option} " in printed
    assert "of the run" in printed
