"""What `--input` may name, and what the results are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmaskformer.command_line.inputs import is_video, list_inputs, result_names


@pytest.fixture()
def folder(tmp_path):
    for name in ("b.jpg", "a.png", "clip.MP4", "notes.txt", "deep/c.png", "deep/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def relative(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_files_folders_and_patterns(folder):
    def listed(*sources):
        return relative(list_inputs([str(folder / source) for source in sources]), folder)

    assert listed("") == ["a.png", "b.jpg", "clip.MP4"]
    assert listed("*.png") == ["a.png"]
    assert listed("**/*.png") == ["a.png", "deep/a.png", "deep/c.png"]
    assert listed("notes.txt") == ["notes.txt"], "a file that is named is taken at its word"
    assert listed("b.jpg", "", "b.jpg") == ["b.jpg", "a.png", "clip.MP4"]
    assert listed("[ab].*") == ["a.png", "b.jpg"]
    assert is_video(folder / "clip.MP4") and not is_video(folder / "a.png")


def test_nothing_found(folder):
    for source in ("absent", "*.tif", "absent/*.png"):
        with pytest.raises(FileNotFoundError, match="no image file, and no folder or pattern"):
            list_inputs([str(folder / source)])


def test_names_are_the_shortest_that_tell_files_apart():
    paths = [Path(path) for path in ("x/a.png", "x/a.jpg", "y/a.jpg", "y/b.png", "x/panoptic.png")]
    assert result_names(paths, ("panoptic",)) == ["a.png", "x_a.jpg", "y_a.jpg", "b", "panoptic.png"]
    assert result_names([Path("/x/1.png")]) == ["1"]
    hostile = [Path("a/b_c.png"), Path("a_b/c.png"), Path("a/b/c.png"), Path("d/b_c.png")]
    names = result_names(hostile)
    assert len(set(names)) == 4


def test_results_of_an_earlier_run_are_not_taken_for_images(folder):
    def listed(source, output):
        return relative(list_inputs([str(folder / source)], folder / output), folder)

    assert listed("**/*.png", "deep") == ["a.png"]
    assert listed("**/*.png", "out") == ["a.png", "deep/a.png", "deep/c.png"]
    assert listed("deep/*.png", "") == ["deep/a.png", "deep/c.png"], "a folder that is named is meant"
    assert listed("deep", "") == ["deep/a.png", "deep/c.png"]
    assert listed("deep/a.png", "deep") == ["deep/a.png"]
    with pytest.raises(FileNotFoundError, match="no image file outside"):
        listed("deep/*.png", "deep")
