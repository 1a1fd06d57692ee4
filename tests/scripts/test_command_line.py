"""The scripts' arguments, files and exit statuses, with an untrained model."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kmaskformer.command_line.video import VideoFrames, VideoWriter
from kmaskformer.evaluation.files import read_instances, read_panoptic_file
from kmaskformer.presets import save_to_preset
from kmaskformer.trained_run import load_model

OVERRIDES = [
    "data.image_size=[64, 64]",
    "data.val={count: 2, seed: 1}",
]
CONFIG = "configs/shapes/panoptic/maskformer_resnet18.yaml"


@pytest.fixture(scope="module")
def run_folder(make_run_folder, tmp_path_factory):
    """What training leaves for the other scripts: a model and its configuration."""
    return make_run_folder(tmp_path_factory.mktemp("run"), OVERRIDES)


@pytest.fixture()
def run_script(load_script, monkeypatch):
    """Runs a script's `main` with command line arguments."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = load_script(name).main()
        if status is not None:
            sys.exit(status)

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (50, 30, 3), dtype=np.uint8)).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_predict_writes_overlay_map_and_table_for_each_image(run_script, run_folder, pictures, tmp_path, task):
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", run_folder, "--input", pictures, "--output", tmp_path, "--task", task)
    assert exit_.value.code == 0
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.json", "a_overlay.png", "a_segmentation.png"]
    table = json.loads((tmp_path / "b.json").read_text())
    assert (table["height"], table["width"], table["task"]) == (50, 30, task)
    assert Image.open(tmp_path / "b_segmentation.png").size == (30, 50)


@pytest.mark.parametrize(
    ("task", "written"), [("semantic", "labels"), ("instance", "instances.json"), ("panoptic", "panoptic.json")]
)
def test_predict_writes_the_files_of_the_official_tools(run_script, run_folder, pictures, tmp_path, task, written):
    arguments = ["--input", pictures, "--output", tmp_path, "--task", task, "--format", "dataset"]
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", run_folder, *arguments)
    assert exit_.value.code == 0
    assert not list(tmp_path.glob("*_overlay.png"))
    if task == "semantic":
        assert Image.open(tmp_path / written / "b.png").size == (30, 50)
    elif task == "panoptic":
        file = read_panoptic_file(tmp_path / written)
        assert sorted(file.annotations) == ["a", "b"] and len(file.categories) == 10
    else:
        assert isinstance(read_instances(tmp_path / written), list)


def test_predict_goes_on_after_a_broken_image_and_says_so(run_script, run_folder, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"\x89PNG but not really")
    Image.new("RGB", (32, 32)).save(folder / "fine.png")
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", run_folder, "--input", folder, "--output", tmp_path / "out")
    assert exit_.value.code == 1
    assert "broken.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "fine_overlay.png").exists()


def test_predict_keeps_images_of_one_stem_apart(run_script, run_folder, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(folder / name)
    with pytest.raises(SystemExit):
        arguments = ["--input", folder, "--output", tmp_path / "out", "--task", "semantic"]
        run_script("predict", "--weights", run_folder, *arguments)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.jpg.json", "a.png.json"]
    with pytest.raises(SystemExit, match="another folder"):
        run_script("predict", "--weights", run_folder, "--input", folder, "--output", folder)


def test_predict_without_images_explains(run_script, run_folder, tmp_path):
    with pytest.raises(SystemExit, match="no image file"):
        run_script("predict", "--weights", run_folder, "--input", tmp_path / "nothing", "--output", tmp_path)


def test_evaluate_prints_and_writes_scores_and_pictures(run_script, run_folder, repository, tmp_path, capsys):
    arguments = ["--config", run_folder / "config.yaml", "--weights", run_folder, "--output", tmp_path]
    with pytest.raises(SystemExit) as exit_:
        run_script("evaluate", *arguments)
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "panoptic/PQ " in printed and "semantic/IoU " in printed and "\nsky " in printed
    pictures = ("predictions", "best_and_worst", "confusion", "classes_panoptic", "classes_semantic")
    tables = ("metrics.json", "metrics.csv", "classes.csv", "confusion.csv", "images.csv")
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{name}.png" for name in pictures), *tables}
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 3
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["evaluation/images"] == 2
    assert 0 <= scores["panoptic/PQ"] <= 1
    assert np.asarray(Image.open(tmp_path / "predictions.png")).std() > 10
    assert (tmp_path / "metrics.csv").read_text().startswith("name,value")


def test_evaluate_writes_the_files_of_the_official_tools(run_script, run_folder, tmp_path, capsys):
    arguments = ["--config", run_folder / "config.yaml", "--weights", run_folder]
    with pytest.raises(SystemExit) as exit_:
        run_script(
            "evaluate",
            *arguments,
            "--predictions",
            tmp_path / "files",
            "--set",
            "evaluation.metrics=[semantic, panoptic, instance]",
            "evaluation.augmentation.shortest_edges=[48]",
        )
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "semantic_tta/mIoU " in printed and "instance/AP " in printed
    assert isinstance(read_instances(tmp_path / "files" / "instances.json"), list)
    assert len(read_panoptic_file(tmp_path / "files" / "panoptic.json").annotations) == 2
    assert len(list((tmp_path / "files" / "labels").glob("*.png"))) == 2
    with pytest.raises(SystemExit, match="that writes predictions cannot be resumed"):
        run_script("evaluate", *arguments, "--predictions", tmp_path, "--output", tmp_path, "--resume")


def test_draw_samples_writes_the_split(run_script, run_folder, tmp_path):
    run_script("draw_samples", "--config", run_folder / "config.yaml", "--count", 9, "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["image_0.png", "image_1.png"]
    assert Image.open(tmp_path / "image_0.png").size == (64, 64)


def test_an_unknown_override_is_refused_with_a_suggestion(run_script, repository, tmp_path):
    arguments = ["--config", repository / CONFIG, "--output", tmp_path, "--set", "data.batchsize=2"]
    with pytest.raises(SystemExit, match=r"^error: .*Did you mean batch_size"):
        run_script("train", *arguments)


def test_predict_takes_several_inputs_and_writes_all_kinds_of_results(run_script, run_folder, pictures, tmp_path):
    inputs = [pictures / "b.jpg", f"{pictures}/*.png"]
    arguments = ["--input", *inputs, "--output", tmp_path, "--task", "panoptic"]
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", run_folder, *arguments)
    assert exit_.value.code == 0
    assert sorted(path.name for path in tmp_path.glob("*_overlay.png")) == ["a_overlay.png", "b_overlay.png"]
    assert sorted(read_panoptic_file(tmp_path / "panoptic.json").annotations) == ["a", "b"]


def test_predict_segments_a_video_frame_by_frame(run_script, run_folder, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for level in range(5):
            writer.add(np.full((40, 60, 3), 50 * level, np.uint8))
    arguments = [
        "--input",
        tmp_path / "clip.mp4",
        "--output",
        tmp_path / "out",
        "--frame-step",
        "2",
        "--task",
        "semantic",
    ]
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", run_folder, *arguments)
    assert exit_.value.code == 0
    overlays = list(VideoFrames(tmp_path / "out" / "clip_overlay.mp4"))
    assert len(overlays) == 3 and overlays[0][1].shape == (40, 60, 3)
    tables = [json.loads(line) for line in (tmp_path / "out" / "clip.jsonl").read_text().splitlines()]
    assert [(table["frame"], table["seconds"]) for table in tables] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    assert sum(segment["area"] for segment in tables[0]["segments"]) == 40 * 60
    labels = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert labels == ["clip_000000.png", "clip_000002.png", "clip_000004.png"]


def test_predict_takes_a_preset(run_script, run_folder, pictures, tmp_path):
    save_to_preset(load_model(run_folder), tmp_path / "preset", shortest_edge=48)
    arguments = ["--input", pictures / "a.png", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit) as exit_:
        run_script("predict", "--weights", tmp_path / "preset", *arguments)
    assert exit_.value.code == 0 and (tmp_path / "out" / "a_overlay.png").exists()


def test_evaluate_takes_a_preset(run_script, run_folder, tmp_path, capsys):
    save_to_preset(load_model(run_folder), tmp_path / "preset")
    with pytest.raises(SystemExit) as exit_:
        run_script("evaluate", "--config", run_folder / "config.yaml", "--weights", tmp_path / "preset")
    assert exit_.value.code == 0 and "panoptic/PQ " in capsys.readouterr().out
