"""`prepare_dataset.py`: conversion, resuming, the check of the result, and its exit status."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_dataset")


@pytest.fixture()
def coco_stuff(tmp_path):
    """Two images in the layout of the download."""
    root = tmp_path / "cocostuff"
    for folder in ("images", "annotations", "imageLists"):
        (root / folder).mkdir(parents=True)
    for split, name in (("train", "a"), ("test", "b")):
        (root / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
        Image.new("RGB", (3, 2)).save(root / "images" / f"{name}.jpg")
        with h5py.File(root / "annotations" / f"{name}.mat", "w") as file:
            file["S"] = np.array([[0, 1, 92]] * 2).T
            file["names"] = np.zeros((1, 183))
    return root


def test_convert_check_and_resume(script, coco_stuff, tmp_path, capsys):
    output = tmp_path / "output"
    arguments = ["coco_stuff", "--source", str(coco_stuff), "--output", str(output)]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "train: 1 images, 2 of 171 classes seen (the published split has 9000 images)" in printed
    assert "test: 1 images, 2 of 171 classes seen (the published split has 1000 images)" in printed
    assert "never seen: bicycle, car, " in printed and "and 149 more" in printed
    assert f"data.root={output}" in printed
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    (output / "annotations/train/a.png").unlink()
    assert script.main(arguments) == 0
    kept = output / "annotations/test/b.png"
    assert kept.stat().st_mtime_ns == times[kept] and (output / "annotations/train/a.png").is_file()


def test_what_fails_is_named(script, coco_stuff, tmp_path, capsys):
    (coco_stuff / "annotations/a.mat").write_bytes(b"damaged")
    (coco_stuff / "images/b.jpg").write_bytes((coco_stuff / "images/b.jpg").read_bytes()[:100])
    arguments = ["coco_stuff", "--source", str(coco_stuff), "--output", str(tmp_path / "output")]
    assert script.main([*arguments, "--no-check"]) == 1
    printed = capsys.readouterr().out
    assert f"not converted: {coco_stuff / 'images/a.jpg'}: " in printed
    with h5py.File(coco_stuff / "annotations/a.mat", "w") as file:
        file["S"], file["names"] = np.zeros((3, 2)), np.zeros((1, 183))
    assert script.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "train: 1 images, 0 of 171" in printed and "test: 0 images" in printed
    assert "unreadable: image 0: " in printed and "images/test/b.jpg: cannot be read as image" in printed


def test_datasets_that_are_only_checked(script, shared_folder, tmp_path, capsys):
    sample = shared_folder / "conformance/ade20k_sample3"
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / split).symlink_to(sample / folder)
    assert script.main(["ade20k", "--source", str(tmp_path)]) == 0
    maps = [np.asarray(Image.open(path)).ravel() for path in (sample / "annotations").glob("*.png")]
    seen = len(set(np.concatenate(maps).tolist()) - {0})
    assert f"validation: 3 images, {seen} of 150 classes seen (the published" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ade", "--source", "."], "invalid choice: 'ade'"),
        (["coco_stuff", "--source", "."], "coco_stuff is converted: give the folder of the result as --output"),
        (["cityscapes", "--source", ".", "--output", "x"], "cityscapes is read as it was downloaded: leave --output"),
        (["cityscapes", "--source", "none"], "--source must be an existing folder. Received: none"),
    ],
)
def test_wrong_arguments(script, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        script.parse_arguments(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["ade20k", "ade20k_full", "ade20k_panoptic", "coco_stuff", "cityscapes", "cityscapes_panoptic", "mapillary",
     "coco_panoptic", "coco_instance"],
)  # fmt: skip
def test_an_empty_folder_is_an_error_in_one_line(script, tmp_path, name):
    output = ["--output", str(tmp_path)] if script.DATASETS[name].tasks else []
    with pytest.raises(SystemExit) as exit_:
        script.main([name, "--source", str(tmp_path), *output])
    assert str(exit_.value).startswith("error: ") and str(tmp_path) in str(exit_.value)
