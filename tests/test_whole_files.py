"""A file is there whole or not at all."""

import contextlib
import resource
import signal

import pytest

from kmaskformer.whole_files import append_whole, written_to_disk, written_whole


@contextlib.contextmanager
def largest_file(size):
    """How large a file may become meanwhile: what is beyond fails to be written, as on a full disk.

    Not for the whole test: what pytest prints at its end may go to a file as well.
    """
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_appended_to_the_end_is_not_appended_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_whole(path, "first\n")
    with largest_file(9), pytest.raises(OSError, match="too large"):
        append_whole(path, "second\n")
    assert path.read_text() == "first\n"
    append_whole(path, "third\n")
    assert path.read_text() == "first\nthird\n"


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
