"""How scripts end where the user can mend what went wrong: one line, status 1."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture()
def run_script(load_script, monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return load_script(name).main()

    return run


CALLS = {
    "draw_samples": ["--config", "absent.yaml", "--output", "out"],
    "analyze_model": ["--config", "absent.yaml"],
    "compare_runs": ["absent", "absent"],
    "data_service": ["worker", "--config", "absent.yaml", "--dispatcher", "localhost:1"],
    "evaluate_files": ["panoptic", "--truth", "absent.json", "--predictions", "absent.json"],
    "compare_baselines": ["--output", "absent", "--report-only", "--seeds", "0"],
    "prepare_dataset": ["cityscapes", "--source", "."],
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_absent_files_end_in_one_line(run_script, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: ") as exit_:
        run_script(name, *CALLS[name])
    assert "\n" not in str(exit_.value)


class Two:
    """A reader of two images."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise AssertionError(f"image {index} is read")


class MaskFormer:
    """As far as the checks before the work look at one."""

    num_classes = 10


@pytest.fixture()
def analyze(run_script, repository, tmp_path, monkeypatch):
    """Runs the analysis of a small model, with `further` arguments."""
    monkeypatch.setattr("kmaskformer.extras.require_extra", lambda *_: None)
    config = repository / "configs/shapes/panoptic/maskformer_resnet18.yaml"
    return lambda *further: run_script("analyze_model", "--config", config, "--output", tmp_path, *further)


@pytest.mark.parametrize("number", [-1, 2, 99999])
def test_an_image_that_the_dataset_lacks(analyze, monkeypatch, number):
    monkeypatch.setattr("kmaskformer.build_data.build_reader", lambda *_: Two())
    monkeypatch.setattr("kmaskformer.trained_run.load_model", lambda *_: MaskFormer())
    with pytest.raises(SystemExit, match=rf"--image must be a number 0\.\.1 .*Received: {number}"):
        analyze("--weights", "w.keras", "--tasks", "attention", "--image", number)


@pytest.mark.parametrize("task", ["queries", "attention"])
def test_random_weights_have_learned_nothing(analyze, monkeypatch, task):
    monkeypatch.setattr("kmaskformer.build.build_model", lambda *_: pytest.fail("a random model is built"))
    with pytest.raises(SystemExit, match=rf"{task} shows what a model has learned: give --weights"):
        analyze("--tasks", "flop", task)


@pytest.mark.parametrize("arguments", [("--size", 0, 64), ("--size", -5, 64), ("--batch", 0), ("--images", 0)])
def test_sizes_and_counts_are_positive(analyze, capsys, arguments):
    with pytest.raises(SystemExit):
        analyze(*arguments)
    assert f"{arguments[0]} must be positive. Received: " in capsys.readouterr().err


def test_weights_of_another_model_than_the_configurations(analyze, monkeypatch, tmp_path):
    (tmp_path / "w.keras").touch()
    monkeypatch.setattr("kmaskformer.trained_run.read_model", lambda path: MaskFormer())
    with pytest.raises(
        SystemExit,
        match=r"w\.keras holds a MaskFormer of 10 classes, the configuration describes a MaskFormer of 9",
    ):
        analyze("--weights", tmp_path / "w.keras", "--set", "model.num_classes=9")


def test_every_script_takes_overrides_alike(repository):
    """They are parsed in one place."""
    sources = [*(repository / "scripts").rglob("*.py"), *(repository / "kmaskformer/command_line").glob("*.py")]
    own = [path.name for path in sources if '"--set"' in path.read_text()]
    assert own == ["command.py"]
