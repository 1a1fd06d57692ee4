"""`scripts/inspect_dataset.py`: exit status, output and files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def inspect_dataset(load_script):
    return load_script("inspect_dataset")


@pytest.fixture()
def folder(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        Image.fromarray(np.full((20, 30, 3), 50 * number, np.uint8)).save(tmp_path / f"images/{number}.jpg")
        labels = np.zeros((20, 30), np.uint8)
        labels[5:, 10:] = 1
        Image.fromarray(labels).save(tmp_path / f"masks/{number}.png")
    return tmp_path


def arguments(folder):
    return ["--images", str(folder / "images"), "--masks", str(folder / "masks"), "--classes", "soil, crop"]


def test_a_good_dataset(inspect_dataset, folder, capsys):
    assert inspect_dataset.main([*arguments(folder), "--output", str(folder / "out")]) == 0
    printed = capsys.readouterr().out
    assert "images: 3 of 3 images can be used, 6 segments, 2 to 2 an image" in printed
    assert "crop: 3 images, 3 segments, 50.00% of the labelled pixels, median area 300" in printed
    assert "Training can start." in printed
    assert {path.name for path in (folder / "out").iterdir()} == {"report.html", "images.png"}


def test_a_broken_dataset(inspect_dataset, folder, capsys):
    (folder / "masks/1.png").unlink()
    assert inspect_dataset.main(arguments(folder)) == 1
    printed = capsys.readouterr().out
    assert "1.png: no such label map file" in printed and "Training cannot start: 1 error(s)." in printed


def test_the_splits_of_a_configuration(inspect_dataset, folder, capsys):
    config = folder / "fields.yaml"
    split = "{images: images, labels: masks}"
    config.write_text(
        "model: {num_classes: 3, transformer_decoder: {num_queries: 1}}\n"
        f"data: {{source: semantic_folder, root: {folder}, class_names: [soil, crop], train: {split}, val: {split}}}\n"
    )
    assert inspect_dataset.main(["--config", str(config)]) == 1
    printed = capsys.readouterr().out
    assert "the model has 3 classes and the dataset 2" in printed
    assert "val: 3 images are also in train" in printed and "more segments than the model has queries (1)" in printed
    assert inspect_dataset.main(["--config", str(config), "--set", "model.num_classes=2"]) == 0


def test_no_such_folder(inspect_dataset, folder, capsys):
    assert inspect_dataset.main(["--images", "nowhere", "--masks", "nowhere", "--classes", "a,b"]) == 1
    assert "error: The dataset is empty: no file matches 'nowhere'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        inspect_dataset.main(["--images", "nowhere"])


def test_what_classes_may_be(tmp_path, monkeypatch):
    from kmaskformer.command_line.inspect import parse_classes

    monkeypatch.chdir(tmp_path)
    (tmp_path / "table").write_text("[]")
    (tmp_path / "soil").mkdir()
    assert parse_classes("nucleus") == ["nucleus"]
    assert parse_classes("soil, crop,,weed, ") == ["soil", "crop", "weed"]
    assert parse_classes("soil") == ["soil"], "a folder is no class table"
    for file in ("table", "absent.json", "absent.CSV", "ade20k_150"):
        assert parse_classes(file) == file
    for slip in ("ade20k_15", "cityscapes19"):
        with pytest.raises(ValueError, match="Did you mean"):
            parse_classes(slip)


def test_instances_of_one_class(inspect_dataset, folder, capsys):
    arguments = ["--images", str(folder / "images"), "--masks", str(folder / "masks"), "--classes", "nucleus"]
    assert inspect_dataset.main([*arguments, "--instances"]) == 0
    assert "nucleus: 3 images, 3 segments" in capsys.readouterr().out
