"""A file is there whole or not at all."""

import pytest

from kmaskformer.whole_files import written_to_disk, written_whole


@pytest.mark.parametrize("write", [written_whole, written_to_disk])
def test_the_old_file_stays_when_writing_fails(tmp_path, write):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), write(path) as aside:
        aside.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]
    with write(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"


def test_an_interrupted_file_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a.png") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "a.png") as path:
        path.write_text("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.png", "whole")]
