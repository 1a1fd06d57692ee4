"""What `--weights` may name, and who reads it."""

from __future__ import annotations

import pytest

from kmaskformer.command_line import evaluate, weights


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
